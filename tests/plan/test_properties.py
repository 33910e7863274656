"""Properties of random well-formed plans over all opcodes."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.plan.random_plans import compiled_plans, model_plans

from treadle.plan.codec import decode, encode
from treadle.plan.ir import NO_REGISTER, CompiledPlan, Opcode
from treadle.plan.liveness import analyse
from treadle.plan.mapping import map_registers
from treadle.plan.verify import verify

many = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@many
@given(model_plans())
def test_plans_verify_and_round_trip_byte_for_byte(plans):
    verify(plans)
    data = encode(plans)
    again = decode(data)
    assert again == plans
    assert encode(again) == data


def reads(instruction):
    return [r for r in instruction.inputs if r != NO_REGISTER]


def alive_by_definition(compiled: CompiledPlan) -> list[set[int]]:
    """Before the first instruction and during each one: the registers whose value is needed then or later."""
    plan = compiled.plan
    steps = [set(plan.inputs)]
    for i, instruction in enumerate(plan.instructions):
        written = set(plan.inputs).union(*(x.outputs for x in plan.instructions[: i + 1]))
        needed = set(plan.outputs).union(*(reads(x) for x in plan.instructions[i:]))
        steps.append((written & needed) | set(instruction.outputs))
    return steps


@many
@given(compiled_plans())
def test_liveness_is_what_its_definition_says(compiled):
    liveness, peak = analyse(compiled.plan)
    instructions = compiled.plan.instructions
    assert peak == max(map(len, alive_by_definition(compiled)))
    for r, last in enumerate(liveness.register_last_read):
        readers = [i for i, instruction in enumerate(instructions) if r in instruction.inputs]
        if r in compiled.plan.outputs:
            assert last == len(instructions)
        else:
            assert last == max(readers)
        for i, bits in enumerate(liveness.kill_after_instruction):
            assert (bits[r // 8] >> (r % 8) & 1) == (i == last)


@many
@given(compiled_plans(), st.integers(0, 2**32))
def test_mapping_keeps_every_value_until_its_last_read(compiled, seed):
    """Runs the plan over buffers that remember which register was written last."""
    sizes = {spec: 64 * (1 + (seed >> k) % 7) for k, spec in enumerate(dict.fromkeys(compiled.register_specs))}
    mapping = map_registers(compiled, sizes.__getitem__)
    assert len(mapping.buffer_bytes) == compiled.peak_registers
    assert all(
        mapping.buffer_bytes[buffer] >= sizes[spec]
        for buffer, spec in zip(mapping.buffer_of, compiled.register_specs, strict=True)
    )
    assert mapping.total_bytes <= sum(sizes[spec] for spec in compiled.register_specs)
    holds = {}
    for r in compiled.plan.inputs:
        holds[mapping.buffer_of[r]] = r
    assert len(holds) == len(compiled.plan.inputs)
    for instruction in compiled.plan.instructions:
        for r in instruction.outputs:
            holds[mapping.buffer_of[r]] = r
        # Operands are read while results are being written.
        assert all(holds[mapping.buffer_of[r]] == r for r in (*reads(instruction), *instruction.outputs))
    assert all(holds[mapping.buffer_of[r]] == r for r in compiled.plan.outputs)


def test_the_generator_reaches_every_opcode():
    seen = set()

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(compiled_plans())
    def look(compiled):
        seen.update(instruction.opcode for instruction in compiled.plan.instructions)

    look()
    assert seen == set(Opcode)
