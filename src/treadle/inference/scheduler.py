"""Continuous batching, first come first served, with chunked prefill. Knows requests, slots and pages, no tensors."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from treadle.errors import PromptTooLong, StateExhausted
from treadle.inference.request import Request, RequestStatus


class Pages(Protocol):
    """What the scheduler asks of the state pool."""

    total_pages: int

    @property
    def free_pages(self) -> int: ...
    def pages_for(self, length: int) -> int: ...
    def alloc(self) -> int: ...
    def reserve(self, slot: int, length: int) -> None: ...
    def deinit(self, slot: int) -> None: ...


class Scheduled(NamedTuple):
    """A request's share of a step: its next `rows` tokens, and for how many of them, the last ones, logits."""

    request: Request
    rows: int
    sampled: int


class Scheduler:
    """Decides which tokens of which requests a step computes.

    Decoding and prefill are one thing: a request brings the tokens whose state is missing, as many as fit. Where pages
    run out the youngest running request gives its own back and starts again later (recompute), so that the oldest
    one always gets on.
    """

    def __init__(self, pool: Pages, max_rows: int, max_batch: int, max_sampled: int) -> None:
        self._pool = pool
        self._max_rows = max_rows
        self._max_batch = max_batch
        self._max_sampled = max_sampled
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.preemptions = 0

    def check(self, request: Request) -> None:
        """Raises PromptTooLong if the request could not fit even alone."""
        tokens = request.max_length if request.sink is not None else request.max_length - 1  # the last is not fed
        needed = self._pool.pages_for(tokens)
        if needed > self._pool.total_pages:
            raise PromptTooLong(
                f"state of {tokens} tokens (prompt and output) takes {needed} pages, the pool has "
                f"{self._pool.total_pages}; lower max_tokens or raise state_tokens"
            )

    def add(self, request: Request) -> None:
        """Queues a checked request."""
        self.waiting.append(request)

    def schedule(self) -> list[Scheduled]:
        """The next step; empty where nothing is left to do. Pages are reserved, nothing is committed."""
        step: list[Scheduled] = []
        rows, sampled = self._max_rows, self._max_sampled
        for request in tuple(self.running):
            share = self._share(request, rows, sampled)
            if share is None or not self._make_room(request, share.rows):
                continue
            step.append(share)
            rows, sampled = rows - share.rows, sampled - share.sampled
        while self.waiting and len(self.running) < self._max_batch:
            request = self.waiting[0]
            share = self._share(request, rows, sampled)
            if share is None or self._pool.pages_for(len(request.token_ids)) > self._pool.free_pages:
                break
            self._admit(self.waiting.popleft(), share.rows)
            step.append(share)
            rows, sampled = rows - share.rows, sampled - share.sampled
        return step

    def finish(self, request: Request) -> None:
        """Takes a request out, wherever it is, and gives its state back. Does nothing if it is out already."""
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
            self._pool.deinit(request.slot)
        elif request.status is RequestStatus.WAITING:
            self.waiting.remove(request)
        request.slot = -1
        request.status = RequestStatus.FINISHED

    def restart(self, requests: list[Request]) -> None:
        """Takes running requests' state away; they are the next to be admitted and start from their first token."""
        for request in reversed(requests):
            self._preempt(request)

    def _share(self, request: Request, rows: int, sampled: int) -> Scheduled | None:
        """What the request can bring within the budgets; None where that is nothing."""
        count = min(request.pending, rows, request.chunk or rows)
        if request.sink is not None:
            unwanted = max(0, request.sink.first - request.computed)
            count = min(count, unwanted + sampled)
            wanted = max(0, count - unwanted)
        else:
            wanted = int(count == request.pending)
        return Scheduled(request, count, wanted) if count and wanted <= sampled else None

    def _make_room(self, request: Request, rows: int) -> bool:
        """Reserves pages, taking them from younger requests if need be. False: the request itself had to yield."""
        if request.status is not RequestStatus.RUNNING:
            return False  # it yielded its pages to an older one, earlier in this pass
        while True:
            try:
                self._pool.reserve(request.slot, request.computed + rows)
                return True
            except StateExhausted:
                youngest = self.running[-1]
                self._preempt(youngest)
                if youngest is request:
                    return False

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._pool.deinit(request.slot)
        request.slot, request.computed, request.status = -1, 0, RequestStatus.WAITING
        request.metrics.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(request)

    def _admit(self, request: Request, rows: int) -> None:
        request.slot = self._pool.alloc()
        self._pool.reserve(request.slot, rows)
        request.status = RequestStatus.RUNNING
        self.running.append(request)
