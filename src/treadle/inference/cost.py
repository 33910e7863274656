"""What a step must at least read and calculate: with the machine's limits, the shortest time it could take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from treadle.inference.backends.base import Numerics
from treadle.inference.core import EngineCore
from treadle.inference.executor import Layout
from treadle.plan.context import Counters
from treadle.plan.ir import NO_WEIGHT, DType, Opcode

FAST_KINDS: Final = {DType.BF16: "bf16", DType.F16: "f32", DType.F32: "f32"}
"""What fast numerics multiply; int8 for the other weights."""


class Operations(msgspec.Struct, frozen=True):
    """A multiply and an add are two; by the type of the numbers that are multiplied."""

    int8: int
    bf16: int
    f32: int


class StepCost(msgspec.Struct, frozen=True):
    """Of a dense model's step. Attention's own products are not counted."""

    weight_bytes: int
    """Packed weights that every step reads once. An embedding table counts only where it is the head's matrix too."""
    state_bytes_per_token: int
    """State that a row reads of each token before it."""
    row: Operations
    sampled_row: Operations
    """What a row costs on top where its logits are wanted."""


def step_cost(layout: Layout, numerics: Numerics) -> StepCost:
    """The cost of one step of the decode program."""
    kinds, default = {"fast": (FAST_KINDS, "int8"), "bf16": ({}, "bf16"), "exact": ({}, "f32")}[numerics]
    program = layout.programs[-1]
    stored = {binding.name: nbytes for binding, nbytes in layout.weight_bytes.items()}
    dtypes = {binding.name: dtype for binding, dtype in layout.dtypes.items()}
    read: dict[str, int] = {}
    operations = {(head, kind): 0 for head in (True, False) for kind in ("int8", "bf16", "f32")}
    for instruction in program.plan.instructions:
        if instruction.opcode is Opcode.EMBEDDING:
            continue
        for index in instruction.weights:
            if index == NO_WEIGHT:
                continue
            binding = program.weight_bindings[index]
            read[binding.name] = stored[binding.name]
            if len(binding.shape) > 1:
                kind = kinds.get(dtypes[binding.name], default)
                operations[instruction.opcode is Opcode.LM_HEAD, kind] += 2 * math.prod(binding.shape)
    return StepCost(
        weight_bytes=sum(read.values()),
        state_bytes_per_token=layout.quote().state_bytes_per_token,
        row=Operations(**{kind: count for (head, kind), count in operations.items() if not head}),
        sampled_row=Operations(**{kind: count for (head, kind), count in operations.items() if head}),
    )


@contextmanager
def counting(core: EngineCore) -> Iterator[Counters]:
    """Counts the steps inside: dispatches by opcode, kernel launches, per-slot fallbacks, planned bytes."""
    core.counters = Counters()
    try:
        yield core.counters
    finally:
        core.counters = None
