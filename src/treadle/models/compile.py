"""The compiler: an architecture becomes verified plans, by a recipe of small passes (`compile_program`).

Plans are per stage and hold no bytes and no container: the same config gives the same plan through either door.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from treadle.errors import UnsupportedModel
from treadle.models.spec import LAYER, Architecture, Op, Program, WeightSpec, numbered
from treadle.plan.ir import (
    NO_REGISTER,
    NO_WEIGHT,
    CompiledPlan,
    DType,
    ExecutionPlan,
    Instruction,
    Lifecycle,
    ModelPlans,
    ParamBlock,
    RegisterSpec,
    Stage,
    StateDescriptor,
    WeightBinding,
)
from treadle.plan.liveness import analyse
from treadle.plan.ops import OPS, SYMBOLS, StateRule
from treadle.plan.params import KV_BLOCK, AttentionParams, MLAParams
from treadle.plan.verify import verify

COMPILER_VERSION: Final = "0.1.0"
STATE_ALIGN: Final = 64
VECTOR_DTYPES: Final = (DType.F32, DType.F16, DType.BF16)
MATRIX_DTYPES: Final = tuple(dtype for dtype in DType if dtype not in (DType.I8, DType.U8, DType.I32, DType.I64))
"""Weight types that this version reads."""


class CompileOptions(msgspec.Struct, frozen=True):
    """`kv_dtype`: how keys and values are kept. `page_tokens`: tokens that one page of paged state covers."""

    kv_dtype: DType = DType.F32
    page_tokens: int = 64


class Placed(NamedTuple):
    """An op of one layer (-1: none)."""

    op: Op
    layer: int


class Operands(NamedTuple):
    """An op's registers, in the order of its OpSpec, and the sizes that its shape words stand for."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dims: Mapping[str, int]


class WeightUse(NamedTuple):
    """A weight as one op's slot wants it."""

    spec: WeightSpec
    layer: int
    shape: tuple[int, ...]


class Registers(NamedTuple):
    specs: tuple[RegisterSpec, ...]
    operands: tuple[Operands, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def compile_model(architecture: Architecture, config_hash: str, options: CompileOptions) -> ModelPlans:
    """All programs of a model. Raises UnsupportedModel (the architecture contradicts itself) or InvalidPlan."""
    compiled: dict[Stage, CompiledPlan] = {}
    for program in architecture.programs:
        plan = msgspec.structs.replace(compile_program(program, options), diagnostics=architecture.notes)
        compiled |= {stage: msgspec.structs.replace(plan, stage=stage) for stage in program.stages}
    plans = ModelPlans(
        facts=architecture.facts,
        config_hash=config_hash,
        compiler_version=COMPILER_VERSION,
        prefill=compiled.get(Stage.PREFILL),
        decode=compiled.get(Stage.DECODE),
        encode=compiled.get(Stage.ENCODE),
    )
    verify(plans)
    return plans


def compile_program(program: Program, options: CompileOptions) -> CompiledPlan:
    """One program as the plan of its first stage."""
    ops = expand_layers(program)
    ops = choose_kv_dtype(ops, options.kv_dtype)
    registers = assign_registers(program, ops)
    bindings, weights = bind_weights(ops, registers.operands)
    blocks, block_ids = intern_params(ops)
    states, state_ids = describe_states(ops, options.page_tokens)
    instructions = tuple(
        Instruction(placed.op.params.OPCODE, operands.inputs, operands.outputs, refs, block, state)
        for placed, operands, refs, block, state in zip(
            ops, registers.operands, weights, block_ids, state_ids, strict=True
        )
    )
    plan = ExecutionPlan(instructions, len(registers.specs), states, registers.inputs, registers.outputs)
    liveness, peak = analyse(plan)
    return CompiledPlan(program.stages[0], plan, blocks, bindings, registers.specs, liveness, peak)


def expand_layers(program: Program) -> tuple[Placed, ...]:
    """Prologue, every layer's ops with its number, epilogue."""
    layers = [Placed(op, i) for i, layer in enumerate(program.layers) for op in layer]
    return (*(Placed(op, -1) for op in program.prologue), *layers, *(Placed(op, -1) for op in program.epilogue))


def choose_kv_dtype(ops: tuple[Placed, ...], kv_dtype: DType) -> tuple[Placed, ...]:
    """Write the KV type into the params of every op that keeps keys and values. Raises UnsupportedModel."""

    def chosen(placed: Placed) -> Placed:
        params = placed.op.params
        if not isinstance(params, AttentionParams | MLAParams):
            return placed
        params = msgspec.structs.replace(params, kv_dtype=kv_dtype)
        if not params.state_page_bytes(1):
            dims = ("head_dim", "v_head_dim") if isinstance(params, AttentionParams) else ("kv_lora_rank", "rope_dim")
            shown = " and ".join(f"{name} {getattr(params, name)}" for name in dims)
            raise UnsupportedModel(
                f"layer {placed.layer}: kv_dtype {kv_dtype.name.lower()} keeps blocks of {KV_BLOCK} elements, "
                f"which {shown} are no multiples of; use f16 or bf16"
            )
        return placed._replace(op=msgspec.structs.replace(placed.op, params=params))

    return tuple(chosen(placed) for placed in ops)


def assign_registers(program: Program, ops: tuple[Placed, ...]) -> Registers:
    """A new register for every value written; shapes follow from the op table. Raises UnsupportedModel."""
    specs = [RegisterSpec(value.dtype, value.shape) for value in program.inputs]
    current = {value.name: r for r, value in enumerate(program.inputs)}
    operands: list[Operands] = []
    for op, _ in ops:
        spec = OPS[op.params.OPCODE]
        missing = [name for name in op.reads if name not in current]
        if missing:
            raise UnsupportedModel(f"{spec.name}: reads {missing[0]!r}, which nothing before it writes")
        if len(op.reads) > len(spec.inputs):
            raise UnsupportedModel(f"{spec.name}: reads {len(op.reads)} values, takes {len(spec.inputs)}")
        reads = [current[name] for name in op.reads]
        reads += [NO_REGISTER] * (len(spec.inputs) - len(reads))
        dims = dict(op.params.dims()) | dict(op.sizes)
        for port, register in zip(spec.inputs, reads, strict=True):
            if register != NO_REGISTER:
                unify(dims, port.shape, specs[register].shape, f"{spec.name}: {port.name}")
        (port,) = spec.outputs
        current[op.writes] = len(specs)
        operands.append(Operands(tuple(reads), (len(specs),), dims))
        specs.append(RegisterSpec(port.dtype, resolve(port.shape, dims, f"{spec.name}: {port.name}")))
    outputs = tuple(current[name] for name in program.outputs)
    return Registers(tuple(specs), tuple(operands), tuple(range(len(program.inputs))), outputs)


def unify(dims: dict[str, int], words: tuple[str, ...], shape: tuple[int, ...], where: str) -> None:
    """Learn unknown words from a register's shape, and check the known ones."""
    expected = tuple(SYMBOLS.get(word, dims.setdefault(word, size)) for word, size in zip(words, shape, strict=True))
    if expected != shape:
        raise UnsupportedModel(f"{where}: shape {shape} does not fit {dict(zip(words, expected, strict=True))}")


def resolve(words: tuple[str, ...], dims: Mapping[str, int], where: str) -> tuple[int, ...]:
    """The shape that words stand for."""
    unknown = [word for word in words if word not in SYMBOLS and word not in dims]
    if unknown:
        raise UnsupportedModel(f"{where}: nothing tells the size {unknown[0]!r}")
    return tuple(int(SYMBOLS[word]) if word in SYMBOLS else dims[word] for word in words)


def bind_weights(
    ops: tuple[Placed, ...], operands: tuple[Operands, ...]
) -> tuple[tuple[WeightBinding, ...], tuple[tuple[int, ...], ...]]:
    """A binding per weight name, and every op's references to them. Raises UnsupportedModel.

    Weights that no single layer owns come first: layers then bind alike, and dumps fold them.
    """
    uses: list[list[WeightUse | None]] = []
    for (op, layer), (_, _, dims) in zip(ops, operands, strict=True):
        spec = OPS[op.params.OPCODE]
        strange = op.weights.keys() - {slot.name for slot in spec.weights}
        if strange:
            raise UnsupportedModel(f"{spec.name}: has no weight slot {min(strange)!r}")
        row: list[WeightUse | None] = []
        for slot in spec.weights:
            found = op.weights.get(slot.name)
            shape = () if found is None else resolve(slot.shape, dims, f"{spec.name}: {slot.name}")
            row.append(None if found is None else WeightUse(found, layer, shape))
        uses.append(row)
    bindings: dict[str, WeightBinding] = {}
    for use in sorted((use for row in uses for use in row if use), key=lambda use: LAYER in use.spec.name):
        binding = bind(use, len(bindings))
        known = bindings.setdefault(binding.name, binding)
        if msgspec.structs.replace(binding, index=known.index) != known:
            raise UnsupportedModel(f"weight {binding.name}: two ops want it differently: {known} and {binding}")
    references = (
        tuple(NO_WEIGHT if use is None else bindings[numbered(use.spec.name, use.layer)].index for use in row)
        for row in uses
    )
    return tuple(bindings.values()), tuple(references)


def bind(use: WeightUse, index: int) -> WeightBinding:
    """The binding that a use asks for."""
    spec, layer, shape = use
    name = numbered(spec.name, layer)
    if layer < 0 and LAYER in spec.name:
        raise UnsupportedModel(f"weight {spec.name}: only layers have a number")
    if spec.generator is not None:
        return WeightBinding(index, name, shape, (DType.F32,), spec.sources(layer), spec.generator)
    dtypes = VECTOR_DTYPES if len(shape) == 1 else MATRIX_DTYPES
    return WeightBinding(index, name, shape, dtypes, spec.sources(layer))


def intern_params(ops: tuple[Placed, ...]) -> tuple[tuple[ParamBlock, ...], tuple[int, ...]]:
    """Equal params are stored once; ids in order of first use."""
    ids: dict[ParamBlock, int] = {}
    references = tuple(ids.setdefault(placed.op.params.pack(), len(ids)) for placed in ops)
    return tuple(ids), references


def describe_states(
    ops: tuple[Placed, ...], page_tokens: int
) -> tuple[tuple[StateDescriptor, ...], tuple[int | None, ...]]:
    """One descriptor per op that keeps state. Keys and values are written before they are read: no zeroing."""
    states: list[StateDescriptor] = []
    references: list[int | None] = []
    for op, _ in ops:
        rule = OPS[op.params.OPCODE].state
        if rule is StateRule.NONE or not op.params.stateful():
            references.append(None)
            continue
        paged = rule is StateRule.PAGED
        tokens = page_tokens if paged else 0
        size = -(-op.params.state_page_bytes(tokens) // STATE_ALIGN) * STATE_ALIGN
        references.append(len(states))
        states.append(StateDescriptor(len(states), size, STATE_ALIGN, not paged, Lifecycle.SLOT_PERSISTENT, tokens))
    return tuple(states), tuple(references)
