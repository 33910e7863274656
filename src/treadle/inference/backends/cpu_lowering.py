"""The cpu backend's own lowering: a plan's instructions, with neighbours fused where the native core has one op.

Fused opcodes (128 and up) exist between this file and native/contract/types.hpp only; plan files never hold them.
A fused op computes what its parts compute, in the same order, so results are bit-identical with fusions off.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from treadle.plan.ir import CompiledPlan, Opcode, ParamBlock

ATTENTION_BLOCK: Final = 128
"""norm, multihead_attention, residual_add."""
MLP_BLOCK: Final = 129
"""norm, swiglu, residual_add."""
NORM_LM_HEAD: Final = 130
"""norm, lm_head."""
MOE_BLOCK: Final = 131
"""norm, moe, residual_add."""
SHORTCONV_BLOCK: Final = 132
"""norm, shortconv, residual_add."""
MAMBA_BLOCK: Final = 133
"""norm, mamba_mixer, residual_add."""
DELTA_BLOCK: Final = 134
"""norm, gated_delta_net, residual_add."""
LATENT_BLOCK: Final = 135
"""norm, mla_attention, residual_add."""

NORMS: Final = frozenset({Opcode.RMSNORM, Opcode.LAYERNORM})
BLOCKS: Final = {
    Opcode.MULTIHEAD_ATTENTION: ATTENTION_BLOCK,
    Opcode.MLA_ATTENTION: LATENT_BLOCK,
    Opcode.SWIGLU: MLP_BLOCK,
    Opcode.MOE: MOE_BLOCK,
    Opcode.SHORTCONV: SHORTCONV_BLOCK,
    Opcode.MAMBA_MIXER: MAMBA_BLOCK,
    Opcode.GATED_DELTA_NET: DELTA_BLOCK,
}
FUSION_NAMES: Final = {
    ATTENTION_BLOCK: "attention_block",
    MLP_BLOCK: "mlp_block",
    NORM_LM_HEAD: "norm_lm_head",
    MOE_BLOCK: "moe_block",
    SHORTCONV_BLOCK: "shortconv_block",
    MAMBA_BLOCK: "mamba_block",
    DELTA_BLOCK: "delta_block",
    LATENT_BLOCK: "latent_block",
}
FUSIONS: Final = frozenset(FUSION_NAMES.values())


@dataclass(frozen=True, slots=True)
class Lowered:
    """One op for the native core. `params`: one block per instruction that it stands for, in their order."""

    opcode: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: tuple[int, ...]
    params: tuple[ParamBlock, ...]
    state: int | None

    @property
    def instructions(self) -> int:
        """How many of the plan's instructions it stands for."""
        return max(1, len(self.params))


def lower(compiled: CompiledPlan, fusions: frozenset[str] = FUSIONS) -> tuple[Lowered, ...]:
    """The plan's instructions with the named fusions applied."""
    ops = [
        Lowered(
            int(i.opcode),
            i.inputs,
            i.outputs,
            i.weights,
            () if i.param_block_id is None else (compiled.param_blocks[i.param_block_id],),
            i.state_block_id,
        )
        for i in compiled.plan.instructions
    ]
    reads = Counter(register for op in ops for register in op.inputs)
    reads.update(compiled.plan.outputs)
    fused: list[Lowered] = []
    position = 0
    while position < len(ops):
        taken, op = _match(ops, position, reads, fusions)
        fused.append(op)
        position += taken
    return tuple(fused)


def _match(ops: list[Lowered], at: int, reads: Counter[int], fusions: frozenset[str]) -> tuple[int, Lowered]:
    """The widest fusion that begins at an op: (instructions taken, the op that stands for them)."""
    norm = ops[at]
    if norm.opcode not in NORMS or at + 1 == len(ops) or not _feeds(norm, ops[at + 1], reads):
        return 1, norm
    body = ops[at + 1]
    if body.opcode == Opcode.LM_HEAD and FUSION_NAMES[NORM_LM_HEAD] in fusions:
        return 2, Lowered(
            NORM_LM_HEAD,
            norm.inputs,
            body.outputs,
            body.weights + norm.weights,
            norm.params + body.params,
            None,
        )
    block = BLOCKS.get(Opcode(body.opcode))
    if block is None or FUSION_NAMES[block] not in fusions or at + 2 == len(ops):
        return 1, norm
    add = ops[at + 2]
    # residual_add(a, b): the block's result must be b, the scaled one.
    if add.opcode != Opcode.RESIDUAL_ADD or add.inputs[1] != body.outputs[0] or not _feeds(body, add, reads):
        return 1, norm
    return 3, Lowered(
        block,
        (norm.inputs[0], add.inputs[0]),
        add.outputs,
        body.weights + norm.weights,
        norm.params + body.params + add.params,
        body.state,
    )


def _feeds(producer: Lowered, consumer: Lowered, reads: Counter[int]) -> bool:
    """Whether the consumer alone reads the producer's output, once."""
    return reads[producer.outputs[0]] == 1 and producer.outputs[0] in consumer.inputs
