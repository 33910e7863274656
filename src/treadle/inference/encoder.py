"""Encoding: whole sequences packed into ragged steps, one vector each. Nothing is kept from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidRequest, NonFiniteLogits, PromptTooLong
from treadle.inference.core import Runner
from treadle.plan.context import Counters, ExecutionContext
from treadle.plan.ir import NO_WEIGHT, CompiledPlan, Opcode, Stage
from treadle.plan.ops import OPS
from treadle.plan.params import EmbeddingParams, PoolParams, unpack

F32 = NDArray[np.float32]


class Tokens(NamedTuple):
    """A sequence. `types`: which part of a pair each token belongs to; None: all to the first."""

    ids: Sequence[int]
    types: Sequence[int] | None = None


class Encoder:
    """An encode program with the arrays of its largest step. Not for use from several threads at once."""

    def __init__(self, runner: Runner, program: CompiledPlan, vocab_size: int) -> None:
        limits = runner.limits
        self.max_length = limits.max_seq_len
        self.vocab_size = vocab_size
        self.counters: Counters | None = None
        """Set it to have steps counted."""
        self._runner = runner
        self._limits = limits
        self._typed = len(program.plan.inputs) > 1
        self._types, self.width, self.labels = _shape(program)
        self._ids = np.zeros(limits.max_rows, np.int32)
        self._type_ids = np.zeros(limits.max_rows, np.int32)
        self._lengths = np.zeros(limits.max_batch, np.int32)
        self._slots = np.arange(limits.max_batch, dtype=np.int32)
        self._starts = np.zeros(limits.max_batch, np.int32)
        self._no_pages = np.zeros((limits.max_batch, 0), np.int32)

    def encode(self, sequences: Sequence[Tokens]) -> F32:
        """The vectors [sequences, width]. Raises InvalidRequest, PromptTooLong (before anything runs), Cancelled,
        NonFiniteLogits."""
        found = np.empty((len(sequences), self.width), np.float32)
        for begin, vectors in self.steps(sequences):
            found[begin : begin + len(vectors)] = vectors
        return found

    def steps(self, sequences: Sequence[Tokens]) -> Iterator[tuple[int, F32]]:
        """One item a step: the first sequence of the step, and vectors that hold until the next item."""
        for i, sequence in enumerate(sequences):
            self._check(i, sequence)
        begin = 0
        while begin < len(sequences):
            end, rows = begin, 0
            while (
                end < len(sequences)
                and end - begin < self._limits.max_batch
                and rows + len(sequences[end].ids) <= self._limits.max_rows
            ):
                rows += len(sequences[end].ids)
                end += 1
            (vectors,) = self._runner.run(self._fill(sequences[begin:end]))
            finite = np.isfinite(vectors).all(axis=1)
            if not finite.all():
                raise NonFiniteLogits(f"text {begin + int(finite.argmin())}: its vector holds NaN or infinity")
            yield begin, vectors
            begin = end

    def cancel(self) -> None:
        """From another thread: the running step raises Cancelled soon."""
        self._runner.cancel()

    def _fill(self, sequences: Sequence[Tokens]) -> ExecutionContext:
        row, batch = 0, len(sequences)
        for i, (ids, types) in enumerate(sequences):
            rows = slice(row, row + len(ids))
            self._ids[rows] = ids
            self._type_ids[rows] = 0 if types is None else types
            self._lengths[i] = len(ids)
            row += len(ids)
        inputs = (self._ids[:row], self._type_ids[:row]) if self._typed else (self._ids[:row],)
        return ExecutionContext(
            mode=Stage.ENCODE,
            active_slots=self._slots[:batch],
            seq_lens=self._lengths[:batch],
            query_lens=self._lengths[:batch],
            positions=self._starts[:batch],
            inputs=inputs,
            page_table=self._no_pages[:batch],
            state_slots=self._slots[:batch],
            sampled_rows=self._slots[:0],
            counters=self.counters,
        )

    def _check(self, index: int, sequence: Tokens) -> None:
        ids, types = sequence
        if not len(ids):
            raise InvalidRequest(f"text {index} has no tokens")
        if len(ids) > self.max_length:
            raise PromptTooLong(f"text {index} has {len(ids)} tokens; the model takes {self.max_length}")
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise InvalidRequest(f"text {index}: {token} is not a token id, expected [0, {self.vocab_size})")
        if types is not None and self._typed:
            if len(types) != len(ids):
                raise InvalidRequest(f"text {index}: {len(types)} types for {len(ids)} tokens")
            if not all(0 <= kind < self._types for kind in types):
                raise InvalidRequest(f"text {index}: token types must lie in [0, {self._types}), found {max(types)}")


def _shape(program: CompiledPlan) -> tuple[int, int, int]:
    """(types of tokens, width of a vector, labels) of a program; labels is 0 where vectors are embeddings."""
    types = width = labels = 0
    for instruction in program.plan.instructions:
        params = unpack(program.param_blocks[instruction.param_block_id or 0])
        if isinstance(params, EmbeddingParams):
            types = params.types
        elif isinstance(params, PoolParams):
            width = params.out_dim
            head = instruction.weights[OPS[Opcode.POOL].slot("head")]
            labels = 0 if head == NO_WEIGHT else width
    return types, width, labels
