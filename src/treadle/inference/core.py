"""The engine's loop: schedule, run, postprocess. Tokens in, tokens out; text only through a `TextCodec`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.errors import Cancelled, InvalidRequest, NonFiniteLogits, PromptTooLong
from treadle.inference.batch import StepArrays
from treadle.inference.request import FinishReason, Logprob, Request, RequestMetrics, SamplingParams
from treadle.inference.sampling import Sampling, SamplingArrays
from treadle.inference.scheduler import Scheduled, Scheduler
from treadle.inference.sinks import LogitSink
from treadle.inference.state import StatePool
from treadle.inference.text import Detokeniser, OutputText
from treadle.plan.context import Counters, ExecutionContext
from treadle.plan.views import StepLimits

F32 = NDArray[np.float32]


class TextCodec(Protocol):
    """What the loop needs of a tokenizer. `eos_ids` end a generation."""

    @property
    def eos_ids(self) -> Sequence[int]: ...
    def stream(self, skip_special: bool = True, continuation: bool = False) -> Detokeniser: ...
    def token_text(self, token_id: int) -> str: ...


class Runner(Protocol):
    """What the loop, and encoding, need of the executor."""

    @property
    def limits(self) -> StepLimits: ...
    def run(self, context: ExecutionContext, sampling: Sampling | None = None) -> tuple[F32, ...]: ...
    def cancel(self) -> None: ...


class StepRecord(msgspec.Struct, frozen=True):
    """One step. `seconds`: the whole of it, scheduling and sampling included; `run_s`: the program alone."""

    slots: int
    rows: int
    sampled: int
    seconds: float
    run_s: float


class Stats(msgspec.Struct):
    """Sums over all steps. A decode step is one in which every slot brings one row; the rest are prefill steps."""

    prefill_steps: int = 0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_steps: int = 0
    decode_tokens: int = 0
    decode_s: float = 0.0
    preemptions: int = 0

    @property
    def steps(self) -> int:
        return self.prefill_steps + self.decode_steps


_NOTHING: Final = StepRecord(0, 0, 0, 0.0, 0.0)


class EngineCore:
    """Requests, state and a bound model. Not for use from several threads at once."""

    def __init__(
        self,
        runner: Runner,
        pool: StatePool,
        vocab_size: int,
        codec: TextCodec | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = runner.limits
        self.pool = pool
        self.max_model_len = limits.max_seq_len
        self.vocab_size = vocab_size
        self.scheduler = Scheduler(pool, limits.max_rows, limits.max_batch, limits.max_sampled)
        self.stats = Stats()
        self.last_step = _NOTHING
        self.counters: Counters | None = None
        """Set it to have steps counted."""
        self._runner = runner
        self._codec = codec
        self._clock = clock
        self._arrays = StepArrays(limits, pool.table)
        self._sampling = SamplingArrays(limits)
        self._next_id = 0

    # --- requests --------------------------------------------------------------------------------------------

    def add(self, prompt: Sequence[int], params: SamplingParams, chunk: int | None = None) -> list[Request]:
        """Queues a prompt's `params.n` completions. Raises InvalidRequest, PromptTooLong; then nothing is queued."""
        tokens = self._checked_prompt(prompt)
        self._check_ids("stop_token_ids", params.stop_token_ids or ())
        self._check_ids("logit_bias", params.logit_bias or ())
        eos = () if self._codec is None or params.ignore_eos else self._codec.eos_ids
        wanted = self.max_model_len if params.max_tokens is None else len(tokens) + params.max_tokens
        if params.seed is None:
            seed = int.from_bytes(os.urandom(8), "little")
        else:
            seed = params.seed
        group = self._next_id
        requests = [
            Request(
                id=group + index,
                group=group,
                prompt_token_ids=tokens,
                params=params,
                max_length=min(wanted, self.max_model_len),
                stop_ids=frozenset(i for i in (*eos, *(params.stop_token_ids or ())) if i < self.vocab_size),
                seed=seed,
                metrics=RequestMetrics(self._clock()),
                index=index,
                chunk=_checked_chunk(chunk),
                output=self._output_text(params),
            )
            for index in range(params.n)
        ]
        self._queue(requests)
        return requests

    def add_sink(self, prompt: Sequence[int], sink: LogitSink, chunk: int | None = None) -> Request:
        """Queues a prompt for the logits of its positions, which `sink` takes; nothing is generated."""
        tokens = self._checked_prompt(prompt, room=0)
        request = Request(
            id=self._next_id,
            group=self._next_id,
            prompt_token_ids=tokens,
            params=SamplingParams(),
            max_length=len(tokens),
            stop_ids=frozenset(),
            seed=0,
            metrics=RequestMetrics(self._clock()),
            chunk=_checked_chunk(chunk),
            sink=sink,
        )
        self._queue([request])
        return request

    def abort(self, request: Request) -> None:
        """Ends a request, wherever it is. Does nothing if it has ended."""
        if not request.finished:
            self._finish(request, FinishReason.ABORT, None, self._clock())

    @property
    def unfinished(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)

    def cancel(self) -> None:
        """From another thread: the running step raises Cancelled soon."""
        self._runner.cancel()

    # --- the loop --------------------------------------------------------------------------------------------

    def step(self) -> list[Request]:
        """Computes one step; returns the requests that it brought further.

        Raises Cancelled; then the requests stand where they stood before, or start again where state was lost.
        """
        began = self._clock()
        step = self.scheduler.schedule()
        if not step:
            return []
        context = self._arrays.fill(step, self.counters)
        sampling = self._sampling.fill(step)
        started = self._clock()
        try:
            (logits,) = self._runner.run(context, sampling)
        except Cancelled:
            if self.pool.has_fixed:  # it may have moved on; paged state is only written behind what is committed
                self.scheduler.restart([share.request for share in step])
            raise
        now = self._clock()
        self._postprocess(step, logits, sampling, began, now)
        self._record(step, began, self._clock(), now - started)
        return [share.request for share in step]

    def _postprocess(self, step: list[Scheduled], logits: F32, sampling: Sampling, began: float, now: float) -> None:
        row = 0
        chosen, best = sampling.chosen.tolist(), sampling.best.tolist()
        for request, rows, sampled in step:
            if request.metrics.first_scheduled_s is None:
                request.metrics.first_scheduled_s = began
            request.computed += rows
            self.pool.commit(request.slot, request.computed)
            if request.sink is not None:
                if sampled:
                    request.sink.take(request.computed - sampled, logits[row : row + sampled])
                if not request.pending:
                    self._finish(request, FinishReason.LENGTH, None, now)
            elif sampled and math.isfinite(best[row]):
                if request.logprobs is not None:
                    self._add_logprobs(request, sampling, row)
                self._advance(request, chosen[row], now)
            elif sampled:
                request.error = NonFiniteLogits(f"request {request.id}: logit of token {chosen[row]} is {best[row]}")
                self._finish(request, FinishReason.ERROR, None, now)
            row += sampled

    def _advance(self, request: Request, token: int, now: float) -> None:
        """Takes the token that was chosen and decides whether it is the last."""
        if request.metrics.first_token_s is None:
            request.metrics.first_token_s = now
        request.token_ids.append(token)
        if request.edits is not None and request.edits.seen is not None:
            request.edits.seen.add(token)
        if token in request.stop_ids:
            reason = token if token in (request.params.stop_token_ids or ()) else None
            self._finish(request, FinishReason.STOP, reason, now)
            return
        stop = request.output.push(token) if request.output is not None else None
        if stop is not None:
            self._finish(request, FinishReason.STOP, stop, now)
        elif len(request.token_ids) >= request.max_length:
            self._finish(request, FinishReason.LENGTH, None, now)

    def _finish(self, request: Request, reason: FinishReason, stop_reason: int | str | None, now: float) -> None:
        self.scheduler.finish(request)
        if request.output is not None and not isinstance(stop_reason, str):
            stop = request.output.finish()
            if stop is not None:
                reason, stop_reason = FinishReason.STOP, stop
        request.finish_reason, request.stop_reason = reason, stop_reason
        request.metrics.finished_s = now

    def _add_logprobs(self, request: Request, sampling: Sampling, row: int) -> None:
        assert request.logprobs is not None and request.params.logprobs is not None
        text = (lambda i: "") if self._codec is None else self._codec.token_text
        count = 1 + min(request.params.logprobs, self.vocab_size)
        ids, ranks = sampling.listed_ids[row, :count].tolist(), sampling.listed_ranks[row, :count].tolist()
        values = sampling.listed_logprobs[row, :count].tolist()
        found = zip(ids, values, ranks, strict=True)
        request.logprobs.append({i: Logprob(value, rank, text(i)) for i, value, rank in found})
        request.cumulative_logprob += values[0]

    def _record(self, step: list[Scheduled], began: float, ended: float, run_s: float) -> None:
        slots, rows = len(step), sum(share.rows for share in step)
        self.last_step = StepRecord(slots, rows, sum(share.sampled for share in step), ended - began, run_s)
        stats = self.stats
        if rows == slots:
            stats.decode_steps += 1
            stats.decode_tokens += rows
            stats.decode_s += ended - began
        else:
            stats.prefill_steps += 1
            stats.prefill_tokens += rows
            stats.prefill_s += ended - began
        stats.preemptions = self.scheduler.preemptions

    # --- checks ----------------------------------------------------------------------------------------------

    def _queue(self, requests: list[Request]) -> None:
        for request in requests:
            self.scheduler.check(request)
        self._next_id += len(requests)
        for request in requests:
            self.scheduler.add(request)

    def _output_text(self, params: SamplingParams) -> OutputText | None:
        if self._codec is None:
            return None
        detokeniser = self._codec.stream(params.skip_special_tokens, continuation=True)
        return OutputText(detokeniser, params.stops, params.include_stop_str_in_output, params.min_tokens)

    def _checked_prompt(self, prompt: Sequence[int], room: int = 1) -> list[int]:
        tokens = [int(token) for token in prompt]
        if not tokens:
            raise InvalidRequest("prompt_token_ids is empty")
        if len(tokens) + room > self.max_model_len:
            raise PromptTooLong(f"prompt of {len(tokens)} tokens; max_model_len is {self.max_model_len}")
        self._check_ids("prompt_token_ids", tokens)
        return tokens

    def _check_ids(self, field: str, ids: Sequence[int] | dict[int, float]) -> None:
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise InvalidRequest(f"{field}: {token} is not a token id, expected [0, {self.vocab_size})")


def _checked_chunk(chunk: int | None) -> int | None:
    if chunk is not None and chunk < 1:
        raise InvalidRequest(f"chunk must be at least 1, found {chunk}")
    return chunk
