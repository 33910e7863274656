"""Small changes to well-formed plans: each test breaks one thing and keeps the rest whole."""

from __future__ import annotations

import msgspec
from tests.plan.builder import relive

from treadle.plan import ir
from treadle.plan.ir import NO_WEIGHT, CompiledPlan, DType, Opcode
from treadle.plan.ops import OPS
from treadle.plan.params import unpack

replace = msgspec.structs.replace


def edit(struct, path, value):
    """The struct with what lies at a path of field names and indices replaced; a function maps the old value."""
    if not path:
        return value(struct) if callable(value) else value
    head, *rest = path
    if isinstance(head, int):
        items = list(struct)
        items[head] = edit(items[head], rest, value)
        return tuple(items)
    return replace(struct, **{head: edit(getattr(struct, head), rest, value)})


def find(compiled: CompiledPlan, opcode: Opcode, nth: int = 0) -> int:
    """Index of the nth instruction of an opcode."""
    return [i for i, instruction in enumerate(compiled.plan.instructions) if instruction.opcode == opcode][nth]


def instruction(compiled: CompiledPlan, opcode: Opcode, path, value, nth: int = 0) -> CompiledPlan:
    return relive(edit(compiled, ["plan", "instructions", find(compiled, opcode, nth), *path], value))


def params(compiled: CompiledPlan, opcode: Opcode, nth: int = 0, **fields) -> CompiledPlan:
    """Fields of one instruction's params changed, in a block of its own."""
    index = find(compiled, opcode, nth)
    block_id = compiled.plan.instructions[index].param_block_id
    block = replace(unpack(compiled.param_blocks[block_id]), **fields).pack()
    if sum(i.param_block_id == block_id for i in compiled.plan.instructions) == 1:
        return edit(compiled, ["param_blocks", block_id], block)
    compiled = replace(compiled, param_blocks=(*compiled.param_blocks, block))
    return edit(compiled, ["plan", "instructions", index, "param_block_id"], len(compiled.param_blocks) - 1)


def slot(compiled: CompiledPlan, opcode: Opcode, name: str, value: int, nth: int = 0) -> CompiledPlan:
    """One weight slot set; bindings that are left without a user go."""
    return without_unused(instruction(compiled, opcode, ["weights", OPS[opcode].slot(name)], value, nth))


def without_unused(compiled: CompiledPlan) -> CompiledPlan:
    used = {w for i in compiled.plan.instructions for w in i.weights}
    kept = [b.index for b in compiled.weight_bindings if b.index in used]
    number = {old: new for new, old in enumerate(kept)}
    bindings = tuple(replace(compiled.weight_bindings[old], index=number[old]) for old in kept)
    instructions = tuple(
        replace(i, weights=tuple(number.get(w, w) for w in i.weights)) for i in compiled.plan.instructions
    )
    return replace(edit(compiled, ["plan", "instructions"], instructions), weight_bindings=bindings)


def with_weight(compiled: CompiledPlan, opcode: Opcode, name: str, shape: tuple[int, ...], nth: int = 0):
    """A new binding of this shape in a weight slot."""
    return slot(with_binding(compiled, shape), opcode, name, len(compiled.weight_bindings), nth)


def with_binding(compiled: CompiledPlan, shape: tuple[int, ...] = (32,)) -> CompiledPlan:
    source = ir.Source(ir.Container.GGUF, ("extra",))
    new = ir.WeightBinding(len(compiled.weight_bindings), "extra", shape, (DType.F32,), (source,))
    return replace(compiled, weight_bindings=(*compiled.weight_bindings, new))


def binding(compiled: CompiledPlan, ending: str, **fields) -> CompiledPlan:
    """Fields of the first binding whose name ends so changed."""
    index = next(b.index for b in compiled.weight_bindings if b.name.endswith(ending))
    return edit(compiled, ["weight_bindings", index], lambda b: replace(b, **fields))


def without_register(compiled: CompiledPlan, gone: int, instead: int) -> CompiledPlan:
    """Everything that named register `gone` names `instead`; the numbers above `gone` close up."""

    def moved(registers):
        named = (instead if r == gone else r for r in registers)
        return tuple(r - 1 if gone < r < compiled.plan.register_count else r for r in named)

    plan = compiled.plan
    instructions = tuple(replace(i, inputs=moved(i.inputs), outputs=moved(i.outputs)) for i in plan.instructions)
    plan = replace(plan, instructions=instructions, register_count=plan.register_count - 1, outputs=moved(plan.outputs))
    specs = compiled.register_specs[:gone] + compiled.register_specs[gone + 1 :]
    return relive(replace(compiled, plan=plan, register_specs=specs))


def has_weight(compiled: CompiledPlan, opcode: Opcode, name: str, nth: int = 0) -> bool:
    weights = compiled.plan.instructions[find(compiled, opcode, nth)].weights
    return weights[OPS[opcode].slot(name)] != NO_WEIGHT
