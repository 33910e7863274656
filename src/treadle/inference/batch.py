"""Lays a scheduled step out as the arrays of an ExecutionContext, in memory that is allocated once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from treadle.inference.scheduler import Scheduled
from treadle.plan.context import Counters, ExecutionContext
from treadle.plan.ir import Stage
from treadle.plan.views import StepLimits


class StepArrays:
    """The int32 arrays of the largest step; `fill` returns a context over their fronts, good until the next `fill`."""

    def __init__(self, limits: StepLimits, table: NDArray[np.int32]) -> None:
        """`table`: the pool's [slots, pages]."""
        self._table = table
        self._slots = np.zeros(limits.max_batch, np.int32)
        self._seq_lens = np.zeros(limits.max_batch, np.int32)
        self._query_lens = np.zeros(limits.max_batch, np.int32)
        self._positions = np.zeros(limits.max_batch, np.int32)
        self._tokens = np.zeros(limits.max_rows, np.int32)
        self._sampled = np.zeros(limits.max_sampled, np.int32)

    def fill(self, step: Sequence[Scheduled], counters: Counters | None = None) -> ExecutionContext:
        """Rows of a request lie together, requests in the order of `step`; its sampled rows are its last ones."""
        row = sampled = 0
        for i, share in enumerate(step):
            request, rows = share.request, share.rows
            begin = request.computed
            self._slots[i] = request.slot
            self._positions[i] = begin
            self._query_lens[i] = rows
            self._seq_lens[i] = begin + rows
            if rows == 1:
                self._tokens[row] = request.token_ids[begin]
            else:
                self._tokens[row : row + rows] = request.token_ids[begin : begin + rows]
            row += rows
            if share.sampled == 1:
                self._sampled[sampled] = row - 1
            elif share.sampled:
                self._sampled[sampled : sampled + share.sampled] = np.arange(row - share.sampled, row)
            sampled += share.sampled
        batch = len(step)
        slots = self._slots[:batch]
        return ExecutionContext(
            mode=Stage.DECODE if row == batch else Stage.PREFILL,
            active_slots=slots,
            seq_lens=self._seq_lens[:batch],
            query_lens=self._query_lens[:batch],
            positions=self._positions[:batch],
            inputs=(self._tokens[:row],),
            page_table=self._table[slots],
            state_slots=slots,
            sampled_rows=self._sampled[:sampled],
            counters=counters,
        )
