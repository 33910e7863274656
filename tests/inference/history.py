"""A model that needs no weights: it keeps each token in the pages of its state, and its logits are a hash of all of
them. Any mistake in page tables, positions, chunking, cloning or recompute shows as another token."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import numpy as np

from treadle.errors import Cancelled
from treadle.inference.backends.reference import choose
from treadle.inference.core import EngineCore
from treadle.inference.memory import allocate
from treadle.inference.sampling import Sampling
from treadle.inference.state import StatePool
from treadle.plan.context import ExecutionContext
from treadle.plan.ir import Lifecycle, StateDescriptor
from treadle.plan.views import StateBlockHandle, StepLimits

VOCAB = 97
PAGE_TOKENS = 4


def paged(id: int = 0, page_tokens: int = PAGE_TOKENS, **changes) -> StateDescriptor:
    values = {"align_bytes": 4, "zero_init": False, "lifecycle": Lifecycle.SLOT_PERSISTENT, **changes}
    return StateDescriptor(id=id, size_bytes=4 * page_tokens, page_tokens=page_tokens, **values)


def fixed(id: int = 1, **changes) -> StateDescriptor:
    values = {"align_bytes": 4, "zero_init": True, "lifecycle": Lifecycle.SLOT_PERSISTENT, **changes}
    return StateDescriptor(id=id, size_bytes=8, page_tokens=0, **values)


def arenas(descriptors: Sequence[StateDescriptor], pages: int, slots: int) -> dict[int, StateBlockHandle]:
    return {
        d.id: StateBlockHandle(
            d.id, d.size_bytes, d.align_bytes, allocate((pages if d.page_tokens else slots) * d.size_bytes)
        )
        for d in descriptors
    }


def logits_of(tokens: Sequence[int], vocab: int = VOCAB) -> np.ndarray:
    """Logits after `tokens`, in [-4, 4]."""
    seed = int.from_bytes(hashlib.blake2b(np.asarray(tokens, np.int32).tobytes(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).uniform(-4, 4, vocab).astype(np.float32)


class HistoryRunner:
    """Runs steps as a bound program would. `vocab` values a row; `poison`: histories whose logits are NaN."""

    def __init__(self, limits: StepLimits, states: dict[int, StateBlockHandle], vocab: int = VOCAB) -> None:
        self.limits = limits
        self.vocab = vocab
        self.steps: list[tuple[int, int]] = []
        self.poison: tuple[int, ...] = ()
        self.block = False
        self.entered = threading.Event()
        self._cancelled = threading.Event()
        self._pages = states[0]
        self._sums = states.get(1)

    def run(self, context: ExecutionContext, sampling: Sampling) -> tuple[np.ndarray]:
        context.check()
        self.steps.append((context.batch_size, context.rows))
        self._cancelled.clear()
        self._add_up(context)
        self.entered.set()
        if self.block and self._cancelled.wait(20):
            raise Cancelled("the step was cancelled")
        rows = []
        start = 0
        for i in range(context.batch_size):
            begin, count = int(context.positions[i]), int(context.query_lens[i])
            new = context.inputs[0][start : start + count]
            for position, token in enumerate(new, start=begin):
                self._page(context, i, position)[position % PAGE_TOKENS] = token
            for position in range(begin, begin + count):
                history = [int(self._page(context, i, p)[p % PAGE_TOKENS]) for p in range(position + 1)]
                rows.append(history)
            start += count
        out = (
            np.stack([logits_of(rows[r], self.vocab) for r in context.sampled_rows])
            if len(context.sampled_rows)
            else np.empty((0, self.vocab), np.float32)
        )
        for k, r in enumerate(context.sampled_rows):
            if self.poison and tuple(rows[r][: len(self.poison)]) == self.poison:
                out[k, 3] = np.nan
        choose(out, sampling)
        return (out,)

    def cancel(self) -> None:
        self._cancelled.set()

    def _add_up(self, context: ExecutionContext) -> None:
        """The fixed state: the sum of a slot's tokens, and their count."""
        if self._sums is None:
            return
        start = 0
        for i, slot in enumerate(context.state_slots):
            new = context.inputs[0][start : start + context.query_lens[i]]
            start += len(new)
            state = self._sums.page(int(slot)).view(np.int32)
            state += [new.sum(), len(new)]
            assert state[1] == context.seq_lens[i], "fixed state of another sequence, or fed twice"

    def _page(self, context: ExecutionContext, i: int, position: int) -> np.ndarray:
        page = int(context.page_table[i, position // PAGE_TOKENS])
        assert page >= 0, "a position without a page"
        return self._pages.page(page).view(np.int32)


class Letters:
    """A tokenizer whose token i is one character; 2 ends a sequence."""

    eos_ids = (2,)

    def token_text(self, token_id: int) -> str:
        return chr(ord("A") + token_id)

    def stream(self, skip_special: bool = True, continuation: bool = False) -> _LetterStream:
        return _LetterStream()


class _LetterStream:
    def push(self, token_id: int) -> str:
        return chr(ord("A") + token_id)

    def finish(self) -> str:
        return ""


def make_core(
    max_batch: int = 4,
    max_rows: int = 32,
    max_sampled: int | None = None,
    max_seq_len: int = 64,
    pages: int = 64,
    codec: Letters | None = None,
    descriptors: Sequence[StateDescriptor] = (paged(),),
    vocab: int = VOCAB,
) -> tuple[EngineCore, HistoryRunner]:
    limits = StepLimits(max_rows, max_batch, max_sampled or max_batch, max_seq_len, pages)
    states = arenas(descriptors, pages, max_batch)
    runner = HistoryRunner(limits, states, vocab)
    pool = StatePool(descriptors, states, pages, max_batch, max_seq_len)
    return EngineCore(runner, pool, vocab, codec), runner


def finish(core: EngineCore, limit: int = 10_000) -> None:
    """Steps until nothing is left."""
    for _ in range(limit):
        if not core.unfinished:
            return
        assert core.step(), "requests are left, but none moved"
    raise AssertionError("the engine does not come to an end")
