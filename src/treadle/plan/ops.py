"""OpSpec: the one table of what each opcode takes, gives and means.

Shapes are words. `rows`, `batch`, `sampled`, `merged` are the step's symbols; every other word is a size
that must agree wherever it appears in one instruction: from the op's params (`Params.dims()`), else from the
first operand that has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

import msgspec

from treadle.plan.ir import DType, Opcode, Stage, Symbol
from treadle.plan.param_struct import Params
from treadle.plan.params import (
    AttentionParams,
    EmbeddingParams,
    GatedDeltaNetParams,
    LayerNormParams,
    LMHeadParams,
    MambaParams,
    MLAParams,
    MoEParams,
    PoolParams,
    ResidualAddParams,
    RMSNormParams,
    ShortConvParams,
    SwiGLUParams,
    VisionDeepstackExtractParams,
    VisionPatchEmbedParams,
    VisionScatterParams,
    VisionSpatialMergeParams,
)

SYMBOLS: Final[Mapping[str, Symbol]] = {symbol.name.lower(): symbol for symbol in Symbol}


class StateRule(IntEnum):
    NONE = 0
    PAGED = 1
    """Needs a state descriptor with page_tokens > 0, unless the op is not causal (encoders keep nothing)."""
    FIXED = 2
    """Needs a state descriptor with page_tokens == 0."""


class Port(msgspec.Struct, frozen=True):
    """A register operand."""

    name: str
    shape: tuple[str, ...]
    dtype: DType = DType.F32
    optional: bool = False


class WeightSlot(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[str, ...]
    optional: bool = False


class OpSpec(msgspec.Struct, frozen=True):
    """Arity, order and meaning of one op. `batched`: adapters take the whole ragged batch."""

    opcode: Opcode
    summary: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    params: type[Params]
    stages: frozenset[Stage]
    weights: tuple[WeightSlot, ...] = ()
    state: StateRule = StateRule.NONE
    batched: bool = True

    @property
    def name(self) -> str:
        return self.opcode.name.lower()

    def slot(self, name: str) -> int:
        """Position of a weight slot; KeyError where the op has no such slot."""
        for i, slot in enumerate(self.weights):
            if slot.name == name:
                return i
        raise KeyError(f"{self.name} has no weight {name!r}")


def _port(text: str, dtype: DType = DType.F32) -> Port:
    """'x: rows hidden' or 'types?: rows'."""
    name, _, shape = text.partition(":")
    return Port(name.rstrip("?"), tuple(shape.split()), dtype, optional=name.endswith("?"))


def _slots(*texts: str) -> tuple[WeightSlot, ...]:
    ports = [_port(text) for text in texts]
    return tuple(WeightSlot(port.name, port.shape, port.optional) for port in ports)


_TEXT = frozenset({Stage.PREFILL, Stage.DECODE, Stage.ENCODE})
_GENERATE = frozenset({Stage.PREFILL, Stage.DECODE})
_ANY = _TEXT | {Stage.VISION_ENCODE}
_X = (_port("x: rows hidden"),)
_Y = (_port("y: rows hidden"),)

_TABLE: tuple[OpSpec, ...] = (
    OpSpec(Opcode.RMSNORM, "RMS norm over each row", _X, _Y, RMSNormParams, _ANY, _slots("gain?: hidden")),
    OpSpec(
        Opcode.MULTIHEAD_ATTENTION,
        "projections, rope, grouped-query attention over the KV state, output projection",
        _X,
        _Y,
        AttentionParams,
        _ANY,
        _slots(
            "q: q_dim hidden",
            "k: k_dim hidden",
            "v: v_dim hidden",
            "o: hidden o_dim",
            "q_bias?: q_dim",
            "k_bias?: k_dim",
            "v_bias?: v_dim",
            "o_bias?: hidden",
            "q_norm?: q_norm_dim",
            "k_norm?: k_norm_dim",
            "gate?: o_dim hidden",
            "sinks?: heads",
            "rope_inv_freq?: rope_half",
            "slopes?: heads",
        ),
        StateRule.PAGED,
    ),
    OpSpec(
        Opcode.SWIGLU,
        "gated MLP down(act(gate x) * up x), or plain MLP down(act(up x))",
        _X,
        _Y,
        SwiGLUParams,
        _ANY,
        _slots(
            "gate?: intermediate hidden",
            "up: intermediate hidden",
            "down: hidden intermediate",
            "gate_bias?: intermediate",
            "up_bias?: intermediate",
            "down_bias?: hidden",
        ),
    ),
    OpSpec(
        Opcode.MOE,
        "router, top-k experts, shared experts",
        _X,
        _Y,
        MoEParams,
        _TEXT,
        _slots(
            "router: experts hidden",
            "router_bias?: experts",
            "score_correction?: experts",
            "gate?: experts intermediate hidden",
            "up: experts intermediate hidden",
            "down: experts hidden intermediate",
            "gate_bias?: experts intermediate",
            "up_bias?: experts intermediate",
            "down_bias?: experts hidden",
            "shared_gate?: shared_intermediate hidden",
            "shared_up?: shared_intermediate hidden",
            "shared_down?: hidden shared_intermediate",
            "shared_router?: one hidden",
        ),
    ),
    OpSpec(
        Opcode.MAMBA_MIXER,
        "Mamba or Mamba-2 mixer; conv state, then scan state",
        _X,
        _Y,
        MambaParams,
        _TEXT,
        _slots(
            "in: in_dim hidden",
            "in_bias?: in_dim",
            "conv: conv_channels conv_width",
            "conv_bias?: conv_channels",
            "x?: x_dim inner",
            "dt?: inner dt_rank",
            "dt_bias: dt_dim",
            "a: decays",
            "d: dt_dim",
            "norm?: inner",
            "dt_norm?: dt_rank",
            "b_norm?: state",
            "c_norm?: state",
            "out: hidden inner",
            "out_bias?: hidden",
        ),
        StateRule.FIXED,
    ),
    OpSpec(
        Opcode.SHORTCONV,
        "gated short convolution",
        _X,
        _Y,
        ShortConvParams,
        _TEXT,
        _slots(
            "in: in_dim hidden",
            "in_bias?: in_dim",
            "conv: inner conv_width",
            "conv_bias?: inner",
            "out: hidden inner",
            "out_bias?: hidden",
        ),
        StateRule.FIXED,
    ),
    OpSpec(
        Opcode.MLA_ATTENTION,
        "multi-head latent attention over a compressed KV state",
        _X,
        _Y,
        MLAParams,
        _TEXT,
        _slots(
            "q?: q_dim hidden",
            "q_a?: q_lora hidden",
            "q_a_bias?: q_lora",
            "q_a_norm?: q_lora",
            "q_b?: q_dim q_lora",
            "kv_a: kv_a_dim hidden",
            "kv_a_bias?: kv_a_dim",
            "kv_a_norm: kv_lora",
            "kv_b: kv_b_dim kv_lora",
            "o: hidden o_dim",
            "o_bias?: hidden",
            "rope_inv_freq: rope_half",
        ),
        StateRule.PAGED,
    ),
    OpSpec(
        Opcode.EMBEDDING,
        "table row of each id, plus position and type rows",
        (_port("ids: rows", DType.I32), _port("types?: rows", DType.I32)),
        _Y,
        EmbeddingParams,
        _TEXT | {Stage.SCATTER},
        _slots("table: vocab hidden", "positions?: positions hidden", "types?: types hidden"),
    ),
    OpSpec(
        Opcode.RESIDUAL_ADD,
        "a + scale * b",
        (_port("a: rows hidden"), _port("b: rows hidden")),
        _Y,
        ResidualAddParams,
        _ANY,
    ),
    OpSpec(
        Opcode.GATED_DELTA_NET,
        "gated delta rule mixer; conv state, then delta state",
        _X,
        _Y,
        GatedDeltaNetParams,
        _TEXT,
        _slots(
            "qkv: conv_channels hidden",
            "z: inner hidden",
            "b: v_heads hidden",
            "a: v_heads hidden",
            "conv: conv_channels conv_width",
            "conv_bias?: conv_channels",
            "dt_bias: v_heads",
            "decay: v_heads",
            "norm: v_head_dim",
            "out: hidden inner",
        ),
        StateRule.FIXED,
    ),
    OpSpec(
        Opcode.LAYERNORM,
        "LayerNorm over each row",
        _X,
        _Y,
        LayerNormParams,
        _ANY,
        _slots("gain?: hidden", "bias?: hidden"),
    ),
    OpSpec(
        Opcode.LM_HEAD,
        "logits of the sampled rows",
        _X,
        (_port("logits: sampled vocab"),),
        LMHeadParams,
        _TEXT,
        _slots("weight: vocab hidden", "bias?: vocab"),
    ),
    OpSpec(
        Opcode.POOL,
        "one vector a slot from its rows, optional head",
        _X,
        (_port("y: batch out"),),
        PoolParams,
        frozenset({Stage.ENCODE}),
        _slots(
            "dense?: dense hidden",
            "dense_bias?: dense",
            "norm?: dense",
            "norm_bias?: dense",
            "head?: out dense",
            "head_bias?: out",
        ),
    ),
    OpSpec(
        Opcode.VISION_PATCH_EMBED,
        "pixels of each patch to a row, plus learned positions",
        (_port("pixels: rows patch"),),
        (_port("y: rows hidden"),),
        VisionPatchEmbedParams,
        frozenset({Stage.VISION_ENCODE}),
        _slots("proj: hidden patch", "bias?: hidden", "positions?: grid hidden"),
    ),
    OpSpec(
        Opcode.VISION_SPATIAL_MERGE,
        "merge k x k neighbouring rows and project",
        (_port("x: rows hidden"),),
        (_port("y: merged out"),),
        VisionSpatialMergeParams,
        frozenset({Stage.VISION_ENCODE}),
        _slots(
            "norm?: norm_dim",
            "norm_bias?: norm_dim",
            "fc1: intermediate merged_dim",
            "fc1_bias?: intermediate",
            "fc2?: out intermediate",
            "fc2_bias?: out",
        ),
    ),
    OpSpec(
        Opcode.VISION_DEEPSTACK_EXTRACT,
        "tap intermediate vision rows, merged and projected",
        (_port("x: rows hidden"),),
        (_port("y: merged out"),),
        VisionDeepstackExtractParams,
        frozenset({Stage.VISION_ENCODE}),
        _slots(
            "norm: norm_dim",
            "norm_bias?: norm_dim",
            "fc1: intermediate merged_dim",
            "fc1_bias?: intermediate",
            "fc2: out intermediate",
            "fc2_bias?: out",
        ),
    ),
    OpSpec(
        Opcode.VISION_SCATTER,
        "rows of placeholder ids become the vision rows, in order",
        (_port("ids: rows", DType.I32), _port("x: rows hidden"), _port("vision: merged hidden")),
        _Y,
        VisionScatterParams,
        frozenset({Stage.SCATTER, Stage.PREFILL}),
    ),
)

OPS: Final[Mapping[Opcode, OpSpec]] = {spec.opcode: spec for spec in _TABLE}
