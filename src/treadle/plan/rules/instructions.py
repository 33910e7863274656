"""Rules over instructions and registers: opcodes, arity, single assignment, shapes, liveness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from treadle.errors import InvalidInstructionBinding, InvalidPlan, InvalidRegisterSpec, UnsupportedTensorRank
from treadle.plan.ir import (
    MAX_DIAGNOSTIC,
    MAX_DIAGNOSTICS,
    MAX_INSTRUCTIONS,
    MAX_RANK,
    MAX_REGISTERS,
    NO_REGISTER,
    DType,
    Layout,
    Stage,
)
from treadle.plan.liveness import analyse, live_ranges, peak_live
from treadle.plan.ops import StateRule
from treadle.plan.rules.subject import (
    REGISTER_SYMBOLS,
    Rule,
    Subject,
    plausible,
    size_name,
    unify,
)

_PLAIN: Final = frozenset({DType.F32, DType.F16, DType.BF16, DType.I8, DType.U8, DType.I32, DType.I64})
_CAUSAL_STAGES: Final = frozenset({Stage.PREFILL, Stage.DECODE})


def _plan_size(s: Subject) -> Iterator[str]:
    count = len(s.plan.instructions)
    if not 1 <= count <= MAX_INSTRUCTIONS:
        yield f"{count} instructions; expected 1..{MAX_INSTRUCTIONS}"
    if not 1 <= s.plan.register_count <= MAX_REGISTERS:
        yield f"{s.plan.register_count} registers; expected 1..{MAX_REGISTERS}"


def _diagnostics(s: Subject) -> Iterator[str]:
    if len(s.compiled.diagnostics) > MAX_DIAGNOSTICS:
        yield f"{len(s.compiled.diagnostics)} diagnostics; at most {MAX_DIAGNOSTICS}"
    for i, text in enumerate(s.compiled.diagnostics):
        if len(text) > MAX_DIAGNOSTIC:
            yield f"diagnostic {i} has {len(text)} characters; at most {MAX_DIAGNOSTIC}"


def _opcode_known(s: Subject) -> Iterator[str]:
    for op in s.ops:
        if op.spec is None:
            yield f"{op.label}: the opcode is not in the contract"


def _opcode_stage(s: Subject) -> Iterator[str]:
    for op in s.ops:
        if op.spec is not None and s.compiled.stage not in op.spec.stages:
            yield f"{op.label}: not allowed in stage {s.compiled.stage.name.lower()}"


def _causal_stage(s: Subject) -> Iterator[str]:
    for op in s.ops:
        stateless = op.spec is not None and op.spec.state is not StateRule.NONE and op.sound and not op.sound.stateful()
        if stateless and s.compiled.stage in _CAUSAL_STAGES:
            yield f"{op.label}: not causal, so it keeps no past; {s.compiled.stage.name.lower()} steps need it"


def _arity(s: Subject) -> Iterator[str]:
    for op in s.ops:
        if op.spec is None:
            continue
        for side, found, ports in (
            ("inputs", op.instruction.inputs, op.spec.inputs),
            ("outputs", op.instruction.outputs, op.spec.outputs),
        ):
            if len(found) != len(ports):
                yield f"{op.label}: {len(found)} {side}, expected {', '.join(port.name for port in ports)}"


def _optional_registers(s: Subject) -> Iterator[str]:
    for op in s.ops:
        if op.spec is None:
            continue
        pairs = [*zip(op.spec.inputs, op.instruction.inputs, strict=False)]
        pairs += zip(op.spec.outputs, op.instruction.outputs, strict=False)
        for port, r in pairs:
            if r == NO_REGISTER and not port.optional:
                yield f"{op.label}: {port.name} is absent, and it is not optional"


def _register_range(s: Subject) -> Iterator[str]:
    count = s.plan.register_count
    for where, registers in (("plan inputs", s.plan.inputs), ("plan outputs", s.plan.outputs)):
        for r in registers:
            if not 0 <= r < count:
                yield f"{where}: register {r} is outside 0..{count - 1}"
    for op in s.ops:
        for r in (*op.instruction.inputs, *op.instruction.outputs):
            if not 0 <= r < count and r != NO_REGISTER:
                yield f"{op.label}: register {r} is outside 0..{count - 1}"


def _plan_ports(s: Subject) -> Iterator[str]:
    if not s.plan.inputs or not s.plan.outputs:
        yield f"{len(s.plan.inputs)} plan inputs and {len(s.plan.outputs)} plan outputs; expected one of each or more"
    for where, registers in (("inputs", s.plan.inputs), ("outputs", s.plan.outputs)):
        if len(set(registers)) != len(registers):
            yield f"the plan {where} repeat a register: {list(registers[:32])}"


def _single_assignment(s: Subject) -> Iterator[str]:
    writer = dict.fromkeys(s.plan.inputs, "the caller")
    for op in s.ops:
        for r in op.instruction.outputs:
            if r in writer and r != NO_REGISTER:
                yield f"{op.label}: register {r} is written already, by {writer[r]}"
            writer[r] = op.label


def _written_before_read(s: Subject) -> Iterator[str]:
    written = {NO_REGISTER, *s.plan.inputs}
    count = s.plan.register_count
    for op in s.ops:
        for r in op.instruction.inputs:
            if r not in written and 0 <= r < count:
                yield f"{op.label}: register {r} is read before anything writes it"
        written.update(op.instruction.outputs)
    written.difference_update(s.plan.inputs)
    for r in s.plan.outputs:
        if r not in written and 0 <= r < count:
            yield f"plan output: no instruction writes register {r}"


def _registers_used(s: Subject) -> Iterator[str]:
    used = set(s.plan.outputs)
    for op in s.ops:
        used.update(op.instruction.inputs)
    for r in range(min(s.plan.register_count, MAX_REGISTERS)):
        if r not in used:
            yield f"register {r} is never read"


def _spec_count(s: Subject) -> Iterator[str]:
    if len(s.compiled.register_specs) != s.plan.register_count:
        yield f"{len(s.compiled.register_specs)} register specs for {s.plan.register_count} registers"


def _register_rank(s: Subject) -> Iterator[str]:
    for r, spec in enumerate(s.compiled.register_specs):
        if not 1 <= spec.rank <= MAX_RANK:
            yield f"register {r}: rank {spec.rank}; expected 1..{MAX_RANK}"


def _register_sizes(s: Subject) -> Iterator[str]:
    for r, spec in enumerate(s.compiled.register_specs):
        shape = spec.shape[:MAX_RANK]
        if shape and not plausible(shape, REGISTER_SYMBOLS):
            yield f"register {r}: {list(shape)}; sizes must be positive or symbols, at most 2^48 elements in all"


def _register_storage(s: Subject) -> Iterator[str]:
    for r, spec in enumerate(s.compiled.register_specs):
        if spec.dtype not in _PLAIN or spec.layout != Layout.ROW_MAJOR:
            yield f"register {r}: dtype {int(spec.dtype)}, layout {int(spec.layout)}; expected a plain row-major dtype"


def _port_dtypes(s: Subject) -> Iterator[str]:
    for op in s.ops:
        if op.spec is None:
            continue
        wanted = {port.name: port.dtype for port in (*op.spec.inputs, *op.spec.outputs)}
        for name, _, r, spec in op.registers:
            if spec.dtype in _PLAIN and spec.dtype != wanted[name]:
                found = f"{op.label}: {name} (register {r}) is {spec.dtype.name.lower()}"
                yield f"{found}, expected {wanted[name].name.lower()}"


def _port_shapes(s: Subject) -> Iterator[str]:
    for op in s.ops:
        sizes = op.sizes()
        for name, words, r, spec in op.registers:
            if plausible(spec.shape, REGISTER_SYMBOLS) and (found := unify(sizes, words, spec.shape)):
                shape = " ".join(size_name(size) for size in spec.shape)
                yield f"{op.label}: {name} (register {r}, [{shape}]) {found}"


def _liveness(s: Subject) -> Iterator[str]:
    found, count = s.compiled.liveness, len(s.plan.instructions)
    width = (s.plan.register_count + 7) // 8
    kills = found.kill_after_instruction
    if len(found.register_last_read) != s.plan.register_count or len(kills) != count:
        given = f"{len(found.register_last_read)} last reads and {len(kills)} kill sets"
        yield f"{given} for {s.plan.register_count} registers and {count} instructions"
        return
    if any(len(bits) != width for bits in kills):
        yield f"a kill set is not {width} bytes wide"
        return
    expected, _ = analyse(s.plan)
    for r, (mine, theirs) in enumerate(zip(expected.register_last_read, found.register_last_read, strict=True)):
        if mine != theirs:
            yield f"register {r}: last read given as {theirs}, it is {mine}"
    for i, (mine_bits, bits) in enumerate(zip(expected.kill_after_instruction, kills, strict=True)):
        if mine_bits != bits:
            yield f"instruction {i}: its kill set is not that of the last reads"


def _peak(s: Subject) -> Iterator[str]:
    if s.plan.register_count <= MAX_REGISTERS:
        peak = peak_live(*live_ranges(s.plan), len(s.plan.instructions))
        if peak != s.compiled.peak_registers:
            yield f"peak_registers given as {s.compiled.peak_registers}, it is {peak}"


RULES: Final = (
    Rule("plan-size", InvalidPlan, _plan_size),
    Rule("diagnostics", InvalidPlan, _diagnostics),
    Rule("opcode-known", InvalidInstructionBinding, _opcode_known),
    Rule("opcode-stage", InvalidInstructionBinding, _opcode_stage, of_stage=True),
    Rule("arity", InvalidInstructionBinding, _arity),
    Rule("optional-registers", InvalidInstructionBinding, _optional_registers),
    Rule("register-range", InvalidInstructionBinding, _register_range),
    Rule("plan-ports", InvalidInstructionBinding, _plan_ports),
    Rule("single-assignment", InvalidInstructionBinding, _single_assignment),
    Rule("written-before-read", InvalidInstructionBinding, _written_before_read),
    Rule("registers-used", InvalidRegisterSpec, _registers_used),
    Rule("spec-count", InvalidRegisterSpec, _spec_count),
    Rule("register-rank", UnsupportedTensorRank, _register_rank),
    Rule("register-sizes", InvalidRegisterSpec, _register_sizes),
    Rule("register-storage", InvalidRegisterSpec, _register_storage),
    Rule("port-dtypes", InvalidRegisterSpec, _port_dtypes),
    Rule("port-shapes", InvalidRegisterSpec, _port_shapes),
    Rule("causal-stage", InvalidInstructionBinding, _causal_stage, of_stage=True),
    Rule("liveness", InvalidPlan, _liveness),
    Rule("peak-registers", InvalidPlan, _peak),
)
