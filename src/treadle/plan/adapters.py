"""Adapter tables: what a backend can run, decided before anything runs.

A backend has one static table of 256 entries. `require` refuses a plan that the table cannot run as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Generic, TypeVar

import msgspec

from treadle.errors import UnsupportedBatchSize, UnsupportedOpcode
from treadle.plan.ir import NO_WEIGHT, CompiledPlan, DType, Opcode

A = TypeVar("A")


class BatchSupport(Enum):
    NATIVE = "native"
    PER_SLOT = "per_slot"
    """The adapter loops over slots; binding for batch > 1 needs the caller's word, and every loop is counted."""


class AdapterCapability(msgspec.Struct, frozen=True):
    """What one adapter takes. `max_batch` 0: unbounded. `dtypes`: of weight matrices.

    `invariant`: results are bitwise independent of batch, threads and chunking."""

    dtypes: frozenset[DType]
    batch: BatchSupport = BatchSupport.NATIVE
    max_batch: int = 0
    graph_emit: bool = False
    invariant: bool = False


class AdapterTable(Generic[A]):
    """256 entries, one adapter or none per opcode, each with its capability. Immutable."""

    __slots__ = ("backend", "capabilities", "entries")

    def __init__(self, backend: str, entries: Mapping[int, tuple[A, AdapterCapability]]) -> None:
        self.backend = backend
        self.entries: tuple[A | None, ...] = tuple(entries[i][0] if i in entries else None for i in range(256))
        self.capabilities: tuple[AdapterCapability | None, ...] = tuple(
            entries[i][1] if i in entries else None for i in range(256)
        )

    def claimed(self) -> frozenset[int]:
        return frozenset(i for i, entry in enumerate(self.entries) if entry is not None)

    def get(self, opcode: int) -> A:
        """The adapter. Raises UnsupportedOpcode."""
        entry = self.entries[opcode]
        if entry is None:
            raise UnsupportedOpcode(f"backend {self.backend} has no adapter for opcode {opcode}")
        return entry

    def per_slot(self, compiled: CompiledPlan) -> frozenset[int]:
        """The instructions of a plan, by index, whose adapters loop over slots."""
        found = ((i, self.capabilities[op.opcode]) for i, op in enumerate(compiled.plan.instructions))
        return frozenset(i for i, capability in found if capability and capability.batch is BatchSupport.PER_SLOT)

    def require(
        self,
        compiled: CompiledPlan,
        dtypes: Mapping[int, DType],
        batch: int,
        allow_per_slot: bool = False,
        alternatives: tuple[str, ...] = (),
    ) -> None:
        """Refuses a plan that this table cannot run whole.

        `dtypes`: of each weight binding that is read, by index, as stored. `alternatives`: backends to name in the
        refusal. Raises UnsupportedOpcode or UnsupportedBatchSize, naming the instruction.
        """
        hint = f"; it would run on: {', '.join(alternatives)}" if alternatives else ""
        for i, instruction in enumerate(compiled.plan.instructions):
            name = f"instruction {i} ({Opcode(instruction.opcode).name.lower()})"
            capability = self.capabilities[instruction.opcode]
            if capability is None:
                stored = sorted({dtypes[w].name.lower() for w in instruction.weights if w in dtypes})
                of = f" of {' and '.join(stored)} weights" if stored else ""
                raise UnsupportedOpcode(f"{name}{of}: backend {self.backend} has no adapter for it{hint}")
            for weight in instruction.weights:
                dtype = dtypes.get(weight) if weight != NO_WEIGHT else None
                if dtype is not None and dtype not in capability.dtypes:
                    binding = compiled.weight_bindings[weight].name
                    raise UnsupportedOpcode(
                        f"{name}: backend {self.backend} does not take {dtype.name.lower()} weights ({binding}){hint}"
                    )
            if capability.max_batch and batch > capability.max_batch:
                raise UnsupportedBatchSize(f"{name}: batch {batch} exceeds {self.backend}'s {capability.max_batch}")
            if batch > 1 and capability.batch is BatchSupport.PER_SLOT and not allow_per_slot:
                raise UnsupportedBatchSize(
                    f"{name}: {self.backend} runs it slot by slot; batch {batch} needs allow_per_slot=True"
                )
