"""What a step must at least read and calculate: with the machine's limits, the shortest time it could take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from treadle.inference.core import EngineCore
from treadle.inference.executor import Layout
from treadle.plan.context import Counters
from treadle.plan.ir import NO_WEIGHT, Opcode


class StepCost(msgspec.Struct, frozen=True):
    """Of a dense model's step. A multiply and an add are two operations; attention's own products are not counted."""

    weight_bytes: int
    """Packed weights that every step reads once. An embedding table counts only where it is the head's matrix too."""
    state_bytes_per_token: int
    """State that a row reads of each token before it."""
    operations_per_row: int
    operations_per_sampled_row: int


def step_cost(layout: Layout) -> StepCost:
    """The cost of one step of the decode program."""
    program = layout.programs[-1]
    stored = {binding.name: nbytes for binding, nbytes in layout.weight_bytes.items()}
    read: dict[str, int] = {}
    operations = {True: 0, False: 0}  # key: is it for sampled rows only?
    for instruction in program.plan.instructions:
        if instruction.opcode is Opcode.EMBEDDING:
            continue
        for index in instruction.weights:
            if index == NO_WEIGHT:
                continue
            binding = program.weight_bindings[index]
            read[binding.name] = stored[binding.name]
            if len(binding.shape) > 1:
                operations[instruction.opcode is Opcode.LM_HEAD] += 2 * math.prod(binding.shape)
    return StepCost(
        weight_bytes=sum(read.values()),
        state_bytes_per_token=layout.quote().state_bytes_per_token,
        operations_per_row=operations[False],
        operations_per_sampled_row=operations[True],
    )


@contextmanager
def counting(core: EngineCore) -> Iterator[Counters]:
    """Counts the steps inside: dispatches by opcode, kernel launches, per-slot fallbacks, planned bytes."""
    core.counters = Counters()
    try:
        yield core.counters
    finally:
        core.counters = None
