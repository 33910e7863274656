"""Registers to physical buffers, by linear scan over liveness. A backend calls this once, at bind."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable

from treadle.errors import InvalidRegisterSpec
from treadle.plan.ir import CompiledPlan, RegisterSpec
from treadle.plan.liveness import live_ranges
from treadle.plan.views import PhysicalMapping


def map_registers(compiled: CompiledPlan, bytes_of: Callable[[RegisterSpec], int]) -> PhysicalMapping:
    """Gives every register a buffer such that no two live registers share one.

    A buffer is free for results of instructions behind the last one that reads it: an instruction's result never
    takes over one of its own operands, since ops may read an operand's row after writing that of the result.
    A free buffer that is large enough is taken tight; otherwise the largest free one grows. Hence the number of
    buffers always equals the plan's peak of live registers, and growing never costs more than a new buffer.

    `bytes_of`: size of a register at the largest step that the backend admits.
    Raises InvalidRegisterSpec for a size that is not positive.
    """
    first, last = live_ranges(compiled.plan)
    sizes = [bytes_of(spec) for spec in compiled.register_specs]
    for r, size in enumerate(sizes):
        if size <= 0:
            raise InvalidRegisterSpec(f"register {r}: the backend sizes it at {size} bytes; expected a positive size")
    buffer_of = [0] * len(sizes)
    buffer_bytes: list[int] = []
    free: list[tuple[int, int]] = []  # (bytes, buffer), ascending
    alive: list[tuple[int, int]] = []  # heap of (last instruction, buffer)
    for r in sorted(range(len(sizes)), key=lambda r: (first[r], -sizes[r], r)):
        while alive and alive[0][0] < first[r]:
            buffer = heapq.heappop(alive)[1]
            bisect.insort(free, (buffer_bytes[buffer], buffer))
        if free:
            tightest = min(bisect.bisect_left(free, (sizes[r], 0)), len(free) - 1)
            buffer = free.pop(tightest)[1]
            buffer_bytes[buffer] = max(buffer_bytes[buffer], sizes[r])
        else:
            buffer = len(buffer_bytes)
            buffer_bytes.append(sizes[r])
        buffer_of[r] = buffer
        heapq.heappush(alive, (max(first[r], last[r]), buffer))
    return PhysicalMapping(tuple(buffer_of), tuple(buffer_bytes))
