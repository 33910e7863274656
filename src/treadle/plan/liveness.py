"""Liveness: when each register dies, and how many live at once. The compiler emits it, the verifier recomputes it."""

from __future__ import annotations

from treadle.plan.ir import ExecutionPlan, LivenessMap


def live_ranges(plan: ExecutionPlan) -> tuple[list[int], list[int]]:
    """(first, last) instruction of each register's life, both inclusive.

    A plan input lives from -1 (before the first instruction). A plan output lives to the instruction count.
    A register that nobody reads dies where it is written. Numbers outside the plan are passed over.
    """
    count = plan.register_count
    end = len(plan.instructions)
    first, last = [end] * count, [-1] * count
    for r in plan.inputs:
        if 0 <= r < count:
            first[r] = -1
    for i, instruction in enumerate(plan.instructions):
        for r in instruction.outputs:
            if 0 <= r < count and first[r] == end:
                first[r] = i
                last[r] = max(last[r], i)
        for r in instruction.inputs:
            if 0 <= r < count:
                last[r] = i
    for r in plan.outputs:
        if 0 <= r < count:
            last[r] = end
    return first, last


def peak_live(first: list[int], last: list[int], end: int) -> int:
    """The most registers alive during one instruction, or before the first. Operands and results of one
    instruction are alive together: no result may overwrite an operand."""
    change = [0] * (end + 3)
    for begin, final in zip(first, last, strict=True):
        change[begin + 1] += 1
        change[max(begin, final) + 2] -= 1
    alive = peak = 0
    for step in change:
        alive += step
        peak = max(peak, alive)
    return peak


def analyse(plan: ExecutionPlan) -> tuple[LivenessMap, int]:
    """Last reads, kill sets and the peak of live registers; the fields are explained at `LivenessMap`."""
    first, last = live_ranges(plan)
    width = (plan.register_count + 7) // 8
    kills = [bytearray(width) for _ in plan.instructions]
    for r, i in enumerate(last):
        if 0 <= i < len(kills):
            kills[i][r // 8] |= 1 << (r % 8)
    liveness = LivenessMap(tuple(last), tuple(bytes(bits) for bits in kills))
    return liveness, peak_live(first, last, len(plan.instructions))
