"""ExecutionContext: one ragged, batched step as the scheduler describes it to a bound program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidBatchSize
from treadle.plan.ir import Stage

I32 = NDArray[np.int32]


@dataclass(slots=True)
class OpRun:
    """One op of the bound program, which may stand for several instructions of the plan, over the counted steps."""

    opcode: int
    nanoseconds: int = 0
    planned_bytes: int = 0


@dataclass(slots=True)
class Counters:
    """Observability of a step. Off unless a context carries one."""

    dispatches: dict[int, int] = field(default_factory=dict)
    """Adapter calls per opcode."""
    launches: int = 0
    """Kernel launches (parallel regions on the CPU)."""
    per_slot_fallbacks: int = 0
    planned_bytes: int = 0
    """Weight and state bytes that the plan reads in the step."""
    ops: list[OpRun] = field(default_factory=list)
    """Of the bound program, in order; see `BoundProgram.covers`."""

    def ran(self, index: int, opcode: int, nanoseconds: int, planned_bytes: int) -> None:
        """Adds a run of op `index`; the first step goes through them in order."""
        if index == len(self.ops):
            self.ops.append(OpRun(opcode))
        self.ops[index].nanoseconds += nanoseconds
        self.ops[index].planned_bytes += planned_bytes


@dataclass(slots=True)
class ExecutionContext:
    """A step over `batch_size` slots. Slot i brings query_lens[i] new rows, at positions[i], positions[i]+1, ...

    Rows of slot i lie behind those of slot i-1. Decode is the case of all query_lens equal to 1.
    """

    mode: Stage
    active_slots: I32
    """[batch] slot ids, unique."""
    seq_lens: I32
    """[batch] tokens in the slot's state after this step: positions + query_lens."""
    query_lens: I32
    """[batch] new rows, each >= 1."""
    positions: I32
    """[batch] position of the slot's first new row."""
    inputs: tuple[NDArray[Any], ...]
    """Values of the plan's input registers, in order (token ids i32 [rows], ...)."""
    page_table: I32
    """[batch, pages] physical page of each slot's k-th page; rows are padded with -1."""
    state_slots: I32
    """[batch] page of each slot in the arenas of fixed states (page_tokens 0)."""
    sampled_rows: I32
    """[sampled] ascending indices into the step's rows for which outputs over `sampled` are computed."""
    stream: object | None = None
    workspace: object | None = None
    counters: Counters | None = None

    @property
    def batch_size(self) -> int:
        return len(self.active_slots)

    @property
    def rows(self) -> int:
        return int(self.query_lens.sum())

    def check(self) -> None:
        """Raises InvalidBatchSize where the arrays contradict each other."""
        batch = len(self.active_slots)
        if batch == 0:
            raise InvalidBatchSize("a step needs at least one active slot")
        for name in ("seq_lens", "query_lens", "positions", "page_table", "state_slots"):
            if len(getattr(self, name)) != batch:
                raise InvalidBatchSize(f"{name} has {len(getattr(self, name))} entries for {batch} active slots")
        if len(np.unique(self.active_slots)) != batch:
            raise InvalidBatchSize(f"active_slots repeats a slot: {self.active_slots.tolist()}")
        if self.query_lens.min() < 1 or self.positions.min() < 0:
            raise InvalidBatchSize("every active slot needs at least one row at a position >= 0")
        if not np.array_equal(self.seq_lens, self.positions + self.query_lens):
            raise InvalidBatchSize("seq_lens must equal positions + query_lens")
        sampled = self.sampled_rows
        if len(sampled) and (sampled[0] < 0 or sampled[-1] >= self.rows or np.any(np.diff(sampled) <= 0)):
            raise InvalidBatchSize(f"sampled_rows must ascend within [0, {self.rows})")
