"""Liveness and mapping on plans small enough to work out by hand."""

from __future__ import annotations

import pytest
from tests.plan.builder import Builder, decoder
from tests.plan.edits import edit

from treadle.errors import InvalidRegisterSpec
from treadle.plan.ir import DType, Stage, Symbol
from treadle.plan.liveness import analyse
from treadle.plan.mapping import map_registers
from treadle.plan.params import LMHeadParams, ResidualAddParams, RMSNormParams


def diamond():
    """r1 = f(r0); r2 = f(r1); r3 = r1 + r2; r4 = f(r0); r5 = r3 + r4; r6 = head(r5)."""
    b = Builder(Stage.DECODE)
    r0 = b.input(DType.F32, Symbol.ROWS, 8)
    r1 = b.op(RMSNormParams(0.0), [r0])
    r3 = b.op(ResidualAddParams(), [r1, b.op(RMSNormParams(0.0), [r1])])
    r5 = b.op(ResidualAddParams(), [r3, b.op(RMSNormParams(0.0), [r0])])
    return b.finish(b.op(LMHeadParams(96), [r5]))


def test_last_reads_and_kill_sets():
    liveness, peak = analyse(diamond().plan)
    assert liveness.register_last_read == (3, 2, 2, 4, 4, 5, 6)
    assert liveness.kill_after_instruction == (b"\0", b"\0", b"\x06", b"\x01", b"\x18", b"\x20")
    assert peak == 4  # r0, r1, r2, r3 during the first sum


def test_what_nobody_reads():
    compiled = diamond()
    plan = edit(compiled.plan, ["outputs"], (5,))
    liveness, _ = analyse(plan)
    assert liveness.register_last_read[5:] == (6, 5)
    assert liveness.kill_after_instruction[5] == b"\x40"
    plan = edit(edit(plan, ["instructions", 0, "inputs"], (1,)), ["instructions", 3, "inputs"], (1,))
    assert analyse(plan)[0].register_last_read[0] == -1


def test_inputs_live_together_before_the_first_instruction():
    b = Builder(Stage.DECODE)
    inputs = [b.input(DType.F32, Symbol.ROWS, 8) for _ in range(5)]
    x = inputs[0]
    for other in inputs[1:]:
        x = b.op(ResidualAddParams(), [x, other])
    compiled = b.finish(x)
    assert compiled.peak_registers == 6
    mapping = map_registers(compiled, lambda spec: 64)
    assert len(set(mapping.buffer_of[:5])) == 5


def test_buffers_of_a_decoder():
    compiled = decoder(layers=30)
    sizes = {Symbol.ROWS: 512, Symbol.SAMPLED: 8}

    def bytes_of(spec):
        count = 4
        for size in spec.shape:
            count *= sizes.get(size, size)
        return count

    mapping = map_registers(compiled, bytes_of)
    assert len(mapping.buffer_bytes) == compiled.peak_registers == 3
    assert mapping.total_bytes == 3 * 512 * 32 * 4  # ids and logits fit into buffers of rows


def test_a_tight_buffer_is_preferred_and_the_largest_grows():
    b = Builder(Stage.DECODE)
    ids = [b.input(DType.F32, Symbol.ROWS, width) for width in (1, 2, 4, 8)]
    heads = [b.op(LMHeadParams(96), [x]) for x in ids]
    x = b.finish(*heads)
    # lm_head i reads input i: later results may take the buffers of inputs that died.
    mapping = map_registers(x, lambda spec: {1: 10, 2: 20, 4: 40, 8: 80, 96: 15}[spec.shape[1]])
    assert mapping.buffer_bytes == (80, 40, 20, 15, 15)
    assert mapping.buffer_of == (3, 2, 1, 0, 4, 3, 2, 1)


@pytest.mark.parametrize("size", [0, -64])
def test_sizes_must_be_positive(size):
    with pytest.raises(InvalidRegisterSpec, match="register 0"):
        map_registers(diamond(), lambda spec: size)


def test_a_long_hostile_plan_maps_in_time():
    """All registers alive at once: nothing here may be quadratic in a way that hurts."""
    b = Builder(Stage.DECODE)
    x = b.input(DType.F32, Symbol.ROWS, 8)
    rows = [b.op(RMSNormParams(0.0), [x]) for _ in range(4000)]
    total = rows[0]
    for row in rows[1:]:
        total = b.op(ResidualAddParams(), [total, row])
    compiled = b.finish(total)
    assert compiled.peak_registers == 4001
    assert len(map_registers(compiled, lambda spec: 64).buffer_bytes) == 4001
