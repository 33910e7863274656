"""A plan for people and for golden files: text with repeated layers folded, or plain data for JSON."""

from __future__ import annotations

from enum import IntEnum
from math import inf
from typing import Any

import msgspec

from treadle.plan.codec import plan_hash
from treadle.plan.fold import fold
from treadle.plan.ir import (
    CONTRACT_VERSION,
    NO_REGISTER,
    NO_WEIGHT,
    CompiledPlan,
    Generator,
    Handoff,
    Instruction,
    ModelPlans,
    RegisterSpec,
    StateDescriptor,
    WeightBinding,
)
from treadle.plan.ops import OPS, SYMBOLS
from treadle.plan.param_struct import Params
from treadle.plan.params import unpack
from treadle.plan.rules.values import RANGES

_SYMBOL_NAMES = {int(symbol): name for name, symbol in SYMBOLS.items()}


def text(plans: ModelPlans) -> str:
    """The plans as text. Equal plans give equal text. Raises InvalidPlan."""
    facts = plans.facts
    sizes = f"vocabulary {facts.vocab_size}, hidden {facts.hidden_size}, layers {facts.layers}"
    lines = [
        f"contract {CONTRACT_VERSION}, compiler {plans.compiler_version}",
        f"plan {plan_hash(plans)}",
        f"config {plans.config_hash}",
        f"model {facts.model_type}: {sizes}, positions {facts.max_positions}",
    ]
    shown: dict[bytes, str] = {}
    for compiled in plans.stages():
        name = compiled.stage.name.lower()
        content = msgspec.msgpack.encode(msgspec.structs.replace(compiled, stage=plans.stages()[0].stage))
        if content in shown:
            lines += ["", f"stage {name}: the program of {shown[content]}"]
        else:
            shown[content] = name
            lines += ["", *stage_lines(compiled)]
    lines += ["", "handoffs", *map(_handoff, plans.handoffs)] if plans.handoffs else []
    return "\n".join(lines) + "\n"


def _handoff(handoff: Handoff) -> str:
    ends = f"{handoff.source.name} r{handoff.source_register} -> {handoff.target.name} r{handoff.target_register}"
    kind = f"{handoff.dtype.name} {handoff.layout.name}, owner {handoff.owner.name}, {handoff.lifetime.name}"
    return f"{ends}: {kind}{', sync' if handoff.sync else ''}".lower()


def stage_lines(compiled: CompiledPlan) -> list[str]:
    """One stage, in sections: instructions, registers, states, weights."""
    plan = compiled.plan
    registers = f"{plan.register_count} registers (at most {compiled.peak_registers} live)"
    others = f"{len(plan.state_descs)} states, {len(compiled.weight_bindings)} weights"
    lines = [
        f"stage {compiled.stage.name.lower()}: {len(plan.instructions)} instructions, {registers}, {others}",
        f"inputs {' '.join(f'r{r}' for r in plan.inputs)}",
        f"outputs {' '.join(f'r{r}' for r in plan.outputs)}",
        "instructions",
    ]
    lines += fold([line for i in range(len(plan.instructions)) for line in _instruction_lines(compiled, i)], shortest=4)
    lines.append("registers")
    lines += fold([f"r{r} {_register(spec)}" for r, spec in enumerate(compiled.register_specs)])
    if plan.state_descs:
        lines += ["states", *fold([_state(state) for state in plan.state_descs])]
    lines += ["weights", *fold([line for weight in compiled.weight_bindings for line in _weight_lines(weight)])]
    if compiled.diagnostics:
        lines += ["diagnostics", *compiled.diagnostics]
    return lines


def _instruction_lines(compiled: CompiledPlan, index: int) -> list[str]:
    """'#3 r4 = rmsnorm(x=r3); last read of r3', its params, its weights."""
    instruction = compiled.plan.instructions[index]
    spec = OPS[instruction.opcode]
    operands = zip(spec.inputs, instruction.inputs, strict=True)
    read = ", ".join(f"{port.name}=r{r}" for port, r in operands if r != NO_REGISTER)
    head = f"#{index} {' '.join(f'r{r}' for r in instruction.outputs)} = {spec.name}({read})"
    if instruction.state_block_id is not None:
        head += f" on s{instruction.state_block_id}"
    killed = _killed(compiled.liveness.kill_after_instruction[index])
    if killed:
        head += f"; last of {' '.join(f'r{r}' for r in killed)}"
    lines = [head]
    params = _params(compiled, instruction)
    stated = [] if params is None else _stated(params)
    if stated:
        lines.append("    " + ", ".join(f"{name} {value}" for name, value in stated))
    slots = zip(spec.weights, instruction.weights, strict=True)
    weights = [f"{slot.name}={compiled.weight_bindings[w].name}" for slot, w in slots if w != NO_WEIGHT]
    return [*lines, "    " + ", ".join(weights)] if weights else lines


def _killed(bits: bytes) -> list[int]:
    return [8 * at + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]


def _params(compiled: CompiledPlan, instruction: Instruction) -> Params | None:
    return None if instruction.param_block_id is None else unpack(compiled.param_blocks[instruction.param_block_id])


def _values(params: Params) -> dict[str, float | str]:
    """Field values: enums by name, f32 values in the seven digits that they hold."""
    values: dict[str, float | str] = {}
    for name, accepted in RANGES[type(params)].items():
        value = getattr(params, name)
        if accepted.kind is not None:
            values[name] = accepted.kind(value).name.lower()
        else:
            values[name] = float(f"{value:.7g}") if isinstance(value, float) else value
    return values


def _stated(params: Params) -> list[tuple[str, float | str]]:
    """The fields that differ from their defaults."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(params)}
    return [(name, value) for name, value in _values(params).items() if getattr(params, name) != defaults[name]]


def _register(spec: RegisterSpec) -> str:
    return f"{spec.dtype.name.lower()} [{' '.join(_SYMBOL_NAMES.get(size, str(size)) for size in spec.shape)}]"


def _state(state: StateDescriptor) -> str:
    pages = f"a page of {state.page_tokens} tokens" if state.page_tokens else "one page a slot"
    zero = ", zeroed" if state.zero_init else ""
    return f"s{state.id} {state.lifecycle.name.lower()}: {pages}, {state.size_bytes} bytes by {state.align_bytes}{zero}"


def _weight_lines(weight: WeightBinding) -> list[str]:
    shape = " ".join(str(size) for size in weight.shape)
    dtypes = " ".join(dtype.name.lower() for dtype in weight.dtypes)
    lines = [f"w{weight.index} {weight.name} [{shape}] {dtypes}"]
    if weight.generator is not None:
        lines[0] += f" = {_generator(weight.generator)}"
    for source in weight.sources:
        steps = "".join(f" | {step.kind.name.lower()}({', '.join(map(str, step.args))})" for step in source.transforms)
        names = _many(source.tensors)
        lines.append(f"    {source.container.name.lower()} {names}{steps}")
    return lines


def _many(names: tuple[str, ...]) -> str:
    """Names of equal form once, with their numbers' range: 'experts.{i}.w1 (i = 0..7)'."""
    folded = fold(list(names))
    if len(names) > 1 and len(folded) == 2:
        return f"{folded[1][2:]} ({folded[0][:-1]})"
    return " ".join(names)


def _generator(generator: Generator) -> str:
    return f"{generator.kind.name.lower()}({', '.join(f'{arg:.9g}' for arg in generator.args)})"


def as_dict(plans: ModelPlans) -> dict[str, Any]:
    """The plans as plain data, names instead of numbers where there are names. Raises InvalidPlan."""
    return {
        "contract_version": CONTRACT_VERSION,
        "compiler_version": plans.compiler_version,
        "hash": plan_hash(plans),
        "config_hash": plans.config_hash,
        "facts": msgspec.to_builtins(msgspec.structs.asdict(plans.facts)),
        "stages": [_stage_dict(compiled) for compiled in plans.stages()],
        "handoffs": [_named(handoff) for handoff in plans.handoffs],
    }


def _stage_dict(compiled: CompiledPlan) -> dict[str, Any]:
    plan = compiled.plan
    return {
        "stage": compiled.stage.name.lower(),
        "instructions": [_instruction_dict(compiled, i) for i in range(len(plan.instructions))],
        "inputs": list(plan.inputs),
        "outputs": list(plan.outputs),
        "registers": [
            {"dtype": spec.dtype.name.lower(), "shape": [_SYMBOL_NAMES.get(size, size) for size in spec.shape]}
            for spec in compiled.register_specs
        ],
        "peak_registers": compiled.peak_registers,
        "states": [_named(state) for state in plan.state_descs],
        "weights": [_weight_dict(weight) for weight in compiled.weight_bindings],
        "diagnostics": list(compiled.diagnostics),
    }


def _instruction_dict(compiled: CompiledPlan, index: int) -> dict[str, Any]:
    instruction = compiled.plan.instructions[index]
    spec = OPS[instruction.opcode]
    params = _params(compiled, instruction)
    slots = zip(spec.weights, instruction.weights, strict=True)
    operands = zip(spec.inputs, instruction.inputs, strict=True)
    return {
        "opcode": spec.name,
        "inputs": {port.name: r for port, r in operands if r != NO_REGISTER},
        "outputs": {port.name: r for port, r in zip(spec.outputs, instruction.outputs, strict=True)},
        "params": None if params is None else {name: _json(value) for name, value in _values(params).items()},
        "weights": {slot.name: compiled.weight_bindings[w].name for slot, w in slots if w != NO_WEIGHT},
        "state": instruction.state_block_id,
        "last_reads": _killed(compiled.liveness.kill_after_instruction[index]),
    }


def _json(value: float | str) -> float | str:
    """JSON has no infinity."""
    return str(value) if value == inf else value


def _weight_dict(weight: WeightBinding) -> dict[str, Any]:
    generator = weight.generator
    return {
        "name": weight.name,
        "shape": list(weight.shape),
        "dtypes": [dtype.name.lower() for dtype in weight.dtypes],
        "sources": {
            source.container.name.lower(): {
                "tensors": list(source.tensors),
                "transforms": [[step.kind.name.lower(), *step.args] for step in source.transforms],
            }
            for source in weight.sources
        },
        "generator": None if generator is None else [generator.kind.name.lower(), *generator.args],
    }


def _named(struct: msgspec.Struct) -> dict[str, Any]:
    """Fields of a flat struct, enum values by name."""
    fields = msgspec.structs.asdict(struct)
    return {name: value.name.lower() if isinstance(value, IntEnum) else value for name, value in fields.items()}
