"""What a step must at least read and calculate: with the machine's limits, the shortest time it could take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import msgspec

from treadle.inference.backends.base import Numerics
from treadle.inference.core import EngineCore
from treadle.inference.encoder import Encoder
from treadle.inference.executor import Layout
from treadle.plan.context import Counters
from treadle.plan.ir import NO_WEIGHT, CompiledPlan, DType, Instruction, Opcode, WeightBinding
from treadle.plan.layers import BEHIND, layers_of
from treadle.plan.param_struct import Params
from treadle.plan.params import AttentionParams, MLAParams, MoEParams, unpack

FAST_KINDS: Final = {DType.BF16: "bf16", DType.F16: "f32", DType.F32: "f32"}
"""What fast numerics multiply; int8 for the other weights."""


class Operations(msgspec.Struct, frozen=True):
    """A multiply and an add are two; by the type of the numbers that are multiplied."""

    int8: int
    bf16: int
    f32: int


class InstructionCost(msgspec.Struct, frozen=True):
    """What one instruction must at least read and calculate."""

    opcode: Opcode
    layer: int
    """-1: outside the layers."""
    reads: Mapping[str, int]
    """Packed bytes of each weight, as one token reads it: of an embedding's tables one row, of a mixture the experts
    that it chooses."""
    row: Operations
    """Of each row; of lm_head of each row whose logits are wanted."""
    key_operations: int
    """Of each row and each key that it sees: attention's own products, in f32."""
    state_bytes_per_token: int
    """That a row reads of each token before it."""
    state_bytes: int
    """Of a state that is kept whole: a row reads and writes all of it."""
    window: int
    """Keys that a row sees at most; 0: all."""

    @property
    def weight_bytes(self) -> int:
        return sum(self.reads.values())


class StepCost(msgspec.Struct, frozen=True):
    """Of a model's step. Attention's own products are not counted."""

    weight_bytes: int
    """Packed weights that every step reads once. An embedding table counts only where it is the head's matrix too."""
    state_bytes_per_token: int
    """State that a row reads of each token before it."""
    row: Operations
    sampled_row: Operations
    """What a row costs on top where its logits are wanted."""


def step_cost(layout: Layout, numerics: Numerics) -> StepCost:
    """The cost of one step of the decode program."""
    costs = instruction_costs(layout.programs[-1], layout, numerics)
    read: dict[str, int] = {}
    for cost in costs:
        if cost.opcode is not Opcode.EMBEDDING:
            read |= cost.reads
    heads, others = ([c.row for c in costs if (c.opcode is Opcode.LM_HEAD) is head] for head in (True, False))
    return StepCost(
        weight_bytes=sum(read.values()),
        state_bytes_per_token=layout.quote().state_bytes_per_token,
        row=_sum(others),
        sampled_row=_sum(heads),
    )


def instruction_costs(program: CompiledPlan, layout: Layout, numerics: Numerics) -> tuple[InstructionCost, ...]:
    """The costs of a program's instructions, in order."""
    states = {state.id: state for state in program.plan.state_descs}
    stored = {binding.name: nbytes for binding, nbytes in layout.weight_bytes.items()}
    rows = {binding.name: nbytes for binding, nbytes in layout.row_bytes.items()}
    dtypes = {binding.name: dtype for binding, dtype in layout.dtypes.items()}
    found: list[InstructionCost] = []
    named = [(i, [program.weight_bindings[w] for w in i.weights if w != NO_WEIGHT]) for i in program.plan.instructions]
    layers = layers_of((i.opcode.name.lower(), [weight.name for weight in weights]) for i, weights in named)
    for (instruction, weights), layer in zip(named, layers, strict=True):
        params = _params(program, instruction)
        state = None if instruction.state_block_id is None else states[instruction.state_block_id]
        paged = state is not None and state.page_tokens > 0
        found.append(
            InstructionCost(
                opcode=instruction.opcode,
                layer=-1 if layer == BEHIND else layer,
                reads=_reads(instruction.opcode, params, weights, stored, rows),
                row=_operations(instruction.opcode, params, weights, dtypes, numerics),
                key_operations=_key_operations(params),
                state_bytes_per_token=-(-state.size_bytes // state.page_tokens) if state is not None and paged else 0,
                state_bytes=2 * state.size_bytes if state is not None and not paged else 0,
                window=params.window if isinstance(params, AttentionParams) else 0,
            )
        )
    return tuple(found)


def kept_dtype(program: CompiledPlan) -> str | None:
    """The type that keys and values, or latents, are kept in; None where none are."""
    for instruction in program.plan.instructions:
        params = _params(program, instruction)
        if instruction.state_block_id is not None and isinstance(params, (AttentionParams, MLAParams)):
            return DType(params.kv_dtype).name.lower()
    return None


def _params(program: CompiledPlan, instruction: Instruction) -> Params | None:
    return None if instruction.param_block_id is None else unpack(program.param_blocks[instruction.param_block_id])


def _chosen(params: Params | None, weight: WeightBinding) -> tuple[int, int]:
    """The part of a weight that a row takes: of a mixture's experts those that it chooses."""
    if isinstance(params, MoEParams) and len(weight.shape) == 3:
        return params.experts_per_token, params.num_experts
    return 1, 1


def _reads(
    opcode: Opcode,
    params: Params | None,
    weights: Iterable[WeightBinding],
    stored: Mapping[str, int],
    rows: Mapping[str, int],
) -> dict[str, int]:
    """Packed bytes that one token reads, by weight. `stored`, `rows`: of all of a weight, and of a table's row."""
    if opcode is Opcode.EMBEDDING:
        return {weight.name: rows[weight.name] for weight in weights}
    found = {}
    for weight in weights:
        part, whole = _chosen(params, weight)
        found[weight.name] = stored[weight.name] * part // whole
    return found


def _operations(
    opcode: Opcode,
    params: Params | None,
    weights: Iterable[WeightBinding],
    dtypes: Mapping[str, DType],
    numerics: Numerics,
) -> Operations:
    """Of one row through the instruction's matrices."""
    kinds, default = {"fast": (FAST_KINDS, "int8"), "bf16": ({}, "bf16"), "exact": ({}, "f32")}[numerics]
    found = dict.fromkeys(("int8", "bf16", "f32"), 0)
    for weight in weights:
        if len(weight.shape) > 1 and opcode is not Opcode.EMBEDDING:
            part, whole = _chosen(params, weight)
            found[kinds.get(dtypes[weight.name], default)] += 2 * math.prod(weight.shape) * part // whole
    return Operations(**found)


def _key_operations(params: Params | None) -> int:
    if isinstance(params, AttentionParams):
        return 2 * params.num_heads * (params.head_dim + params.v_head_dim)
    if isinstance(params, MLAParams):
        return 2 * params.num_heads * (2 * params.kv_lora_rank + params.rope_dim)
    return 0


def _sum(costs: list[Operations]) -> Operations:
    return Operations(*(sum(getattr(c, kind) for c in costs) for kind in ("int8", "bf16", "f32")))


@contextmanager
def counting(core: EngineCore | Encoder) -> Iterator[Counters]:
    """Counts the steps inside: dispatches by opcode, kernel launches, per-slot fallbacks, planned bytes."""
    core.counters = Counters()
    try:
        yield core.counters
    finally:
        core.counters = None
