"""What the params of each op may be: the range of every field, and how fields bind one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from math import inf
from typing import Any, Final

import msgspec

from treadle.plan.ir import DType
from treadle.plan.param_struct import Params
from treadle.plan.params import (
    KV_BLOCK,
    Activation,
    AttentionParams,
    EmbeddingParams,
    GatedDeltaNetParams,
    GroupScore,
    LayerNormParams,
    LMHeadParams,
    MambaNorm,
    MambaParams,
    MLAParams,
    MoEParams,
    Pooling,
    PoolParams,
    QKNorm,
    ResidualAddParams,
    RMSNormParams,
    RopeStyle,
    RouterScore,
    ShortConvParams,
    SwiGLUParams,
    VisionDeepstackExtractParams,
    VisionPatchEmbedParams,
    VisionScatterParams,
    VisionSpatialMergeParams,
    kv_bytes,
)

MAX_SIZE: Final = 1 << 24
"""No head, width, rank or vocabulary is larger: products of two stay far below 2^63."""


class Range(msgspec.Struct, frozen=True):
    """Accepted values of a field: within [low, high], never NaN; or one of `values`."""

    text: str
    low: float = -inf
    high: float = inf
    values: frozenset[int] | None = None
    kind: type[IntEnum] | None = None
    """The enum that the values belong to."""

    def holds(self, value: float) -> bool:
        if self.values is not None:
            return value in self.values
        return self.low <= value <= self.high


_F32_MAX = 3.4028235e38
_TINY = 1e-45


def _enum(kind: type[IntEnum]) -> Range:
    return Range(f"one of {', '.join(f'{m.value} {m.name.lower()}' for m in kind)}", values=frozenset(kind), kind=kind)


SIZE: Final = Range(f"1..{MAX_SIZE}", 1, MAX_SIZE)
COUNT: Final = Range(f"0..{MAX_SIZE}", 0, MAX_SIZE)
FLAG: Final = Range("0 or 1", values=frozenset({0, 1}))
FINITE: Final = Range("a finite number", -_F32_MAX, _F32_MAX)
NOT_NEGATIVE: Final = Range("a finite number >= 0", 0.0, _F32_MAX)
POSITIVE: Final = Range("a finite number > 0", _TINY, _F32_MAX)
ACTIVATION: Final = _enum(Activation)
STATE_DTYPE: Final = Range(
    "0 f32, 1 f16, 2 bf16 or 36 q8_0",
    values=frozenset({DType.F32, DType.F16, DType.BF16, DType.Q8_0}),
    kind=DType,
)
_NORM: Final = {"eps": NOT_NEGATIVE, "gain_offset": FINITE}
_MERGE: Final = {
    "merge": Range("1..64", 1, 64),
    "hidden": SIZE,
    "intermediate": SIZE,
    "norm_eps": NOT_NEGATIVE,
    "norm_after_merge": FLAG,
    "activation": ACTIVATION,
}

RANGES: Final[Mapping[type[Params], Mapping[str, Range]]] = {
    RMSNormParams: _NORM,
    LayerNormParams: _NORM,
    AttentionParams: {
        "num_heads": SIZE,
        "num_kv_heads": SIZE,
        "head_dim": SIZE,
        "v_head_dim": SIZE,
        "scale": POSITIVE,
        "causal": FLAG,
        "window": Range("0..2^31-1", 0, 2**31 - 1),
        "rotary_dim": COUNT,
        "rope_style": _enum(RopeStyle),
        "rope_scale": POSITIVE,
        "softcap": NOT_NEGATIVE,
        "qk_norm": _enum(QKNorm),
        "qk_norm_eps": NOT_NEGATIVE,
        "qk_norm_gain_offset": FINITE,
        "qkv_clip": NOT_NEGATIVE,
        "output_gate": FLAG,
        "kv_dtype": STATE_DTYPE,
    },
    SwiGLUParams: {
        "intermediate": SIZE,
        "gated": FLAG,
        "activation": ACTIVATION,
        "alpha": NOT_NEGATIVE,
        "limit": NOT_NEGATIVE,
    },
    MoEParams: {
        "num_experts": SIZE,
        "experts_per_token": SIZE,
        "intermediate": SIZE,
        "gated": FLAG,
        "activation": ACTIVATION,
        "alpha": NOT_NEGATIVE,
        "limit": NOT_NEGATIVE,
        "router_score": _enum(RouterScore),
        "normalise": FLAG,
        "normalise_eps": NOT_NEGATIVE,
        "routed_scale": FINITE,
        "num_groups": SIZE,
        "top_groups": SIZE,
        "group_score": _enum(GroupScore),
        "shared_intermediate": COUNT,
    },
    MambaParams: {
        "generation": Range("1 or 2", values=frozenset({1, 2})),
        "inner": SIZE,
        "state": SIZE,
        "conv_width": Range("1..64", 1, 64),
        "dt_rank": COUNT,
        "heads": COUNT,
        "groups": SIZE,
        "norm": _enum(MambaNorm),
        "norm_groups": SIZE,
        "norm_eps": NOT_NEGATIVE,
        "dt_min": NOT_NEGATIVE,
        "dt_max": Range("a number > 0", _TINY, inf),
        "activation": ACTIVATION,
    },
    ShortConvParams: {"inner": SIZE, "conv_width": Range("1..64", 1, 64)},
    MLAParams: {
        "num_heads": SIZE,
        "q_lora_rank": COUNT,
        "kv_lora_rank": SIZE,
        "nope_dim": SIZE,
        "rope_dim": SIZE,
        "v_head_dim": SIZE,
        "scale": POSITIVE,
        "norm_eps": NOT_NEGATIVE,
        "rope_style": _enum(RopeStyle),
        "rope_scale": POSITIVE,
        "causal": FLAG,
        "kv_dtype": STATE_DTYPE,
    },
    GatedDeltaNetParams: {
        "num_k_heads": SIZE,
        "num_v_heads": SIZE,
        "k_head_dim": SIZE,
        "v_head_dim": SIZE,
        "conv_width": Range("1..64", 1, 64),
        "norm_eps": NOT_NEGATIVE,
        "activation": ACTIVATION,
    },
    EmbeddingParams: {
        "vocab": SIZE,
        "scale": FINITE,
        "max_positions": COUNT,
        "position_offset": COUNT,
        "types": COUNT,
    },
    ResidualAddParams: {"scale": FINITE},
    LMHeadParams: {"vocab": SIZE, "scale": FINITE, "softcap": NOT_NEGATIVE},
    PoolParams: {
        "out_dim": SIZE,
        "pooling": _enum(Pooling),
        "normalise": FLAG,
        "head_activation": ACTIVATION,
        "norm_eps": NOT_NEGATIVE,
        "out_activation": ACTIVATION,
    },
    VisionPatchEmbedParams: {
        "patch_size": Range("1..1024", 1, 1024),
        "temporal_patch_size": Range("1..64", 1, 64),
        "channels": Range("1..64", 1, 64),
        "grid_positions": COUNT,
    },
    VisionSpatialMergeParams: _MERGE,
    VisionDeepstackExtractParams: _MERGE,
    VisionScatterParams: {"placeholder": Range("0..2^31-1", 0, 2**31 - 1)},
}


def _clamped(p: Any) -> Iterator[str]:
    clamped = p.activation == Activation.SWIGLU_CLAMPED
    if clamped and not (p.gated and p.alpha > 0 and p.limit > 0):
        yield "activation swiglu_clamped needs gated = 1, alpha > 0 and limit > 0"
    if not clamped and (p.alpha or p.limit):
        yield "alpha and limit serve the activation swiglu_clamped only"


def _kept(dtype: int, **widths: int) -> Iterator[str]:
    if not kv_bytes(dtype, *widths.values()):
        shown = " and ".join(f"{name} {width}" for name, width in widths.items())
        yield f"kv_dtype q8_0 needs multiples of {KV_BLOCK}, found {shown}"


def _attention(p: AttentionParams) -> Iterator[str]:
    yield from _kept(p.kv_dtype, head_dim=p.head_dim, v_head_dim=p.v_head_dim)
    if p.num_heads % p.num_kv_heads:
        yield f"num_heads {p.num_heads} is not a multiple of num_kv_heads {p.num_kv_heads}"
    if p.rotary_dim > p.head_dim or p.rotary_dim % 2:
        yield f"rotary_dim {p.rotary_dim} must be even and at most head_dim {p.head_dim}"


def _moe(p: MoEParams) -> Iterator[str]:
    yield from _clamped(p)
    if p.num_experts % p.num_groups or p.top_groups > p.num_groups:
        yield f"{p.num_experts} experts, num_groups {p.num_groups}, top_groups {p.top_groups}: groups must be equal"
        return
    if p.experts_per_token > p.num_experts // p.num_groups * p.top_groups:
        yield f"experts_per_token {p.experts_per_token} exceeds the experts of {p.top_groups} groups"
    if p.group_score == GroupScore.SUM_TOP2 and p.num_experts // p.num_groups < 2:
        yield "group_score sum_top2 needs two experts a group"


def _mamba(p: MambaParams) -> Iterator[str]:
    if p.dt_max < p.dt_min:
        yield f"dt_max {p.dt_max} is below dt_min {p.dt_min}"
    if p.generation == 1:
        if not p.dt_rank or p.heads or p.groups != 1 or p.norm == MambaNorm.GATED_RMS:
            yield "generation 1 needs dt_rank > 0, heads = 0, groups = 1 and no gated norm"
    elif p.dt_rank or not p.heads or p.norm == MambaNorm.RMS_DT_B_C:
        yield "generation 2 needs heads > 0, dt_rank = 0 and no norm of dt, B and C"
    elif p.inner % p.heads or p.heads % p.groups or p.inner % p.norm_groups:
        yield f"inner {p.inner}, heads {p.heads}, groups {p.groups}, norm_groups {p.norm_groups} must divide evenly"


def _mla(p: MLAParams) -> Iterator[str]:
    yield from _kept(p.kv_dtype, kv_lora_rank=p.kv_lora_rank, rope_dim=p.rope_dim)
    if p.rope_dim % 2:
        yield f"rope_dim {p.rope_dim} must be even"


def _delta(p: GatedDeltaNetParams) -> Iterator[str]:
    if p.num_v_heads % p.num_k_heads:
        yield f"num_v_heads {p.num_v_heads} is not a multiple of num_k_heads {p.num_k_heads}"


def _embedding(p: EmbeddingParams) -> Iterator[str]:
    if p.position_offset and p.position_offset >= p.max_positions:
        yield f"position_offset {p.position_offset} leaves none of max_positions {p.max_positions}"


RELATIONS: Final[Mapping[type[Params], Callable[[Any], Iterator[str]]]] = {
    AttentionParams: _attention,
    SwiGLUParams: _clamped,
    MoEParams: _moe,
    MambaParams: _mamba,
    MLAParams: _mla,
    GatedDeltaNetParams: _delta,
    EmbeddingParams: _embedding,
}
"""Checked for params whose every value is in its range."""

Feature = Callable[[Any, frozenset[str]], bool]


def _with(slot: str) -> Feature:
    return lambda p, present: slot in present


REQUIRED_IFF: Final[Mapping[type[Params], Mapping[str, Feature]]] = {
    AttentionParams: {
        "q_norm": lambda p, _: p.qk_norm != QKNorm.NONE,
        "k_norm": lambda p, _: p.qk_norm != QKNorm.NONE,
        "gate": lambda p, _: p.output_gate == 1,
        "rope_inv_freq": lambda p, _: p.rotary_dim > 0,
    },
    SwiGLUParams: {"gate": lambda p, _: p.gated == 1},
    MoEParams: {
        "gate": lambda p, _: p.gated == 1,
        "shared_gate": lambda p, _: p.gated == 1 and p.shared_intermediate > 0,
        "shared_up": lambda p, _: p.shared_intermediate > 0,
        "shared_down": lambda p, _: p.shared_intermediate > 0,
    },
    MambaParams: {
        "x": lambda p, _: p.generation == 1,
        "dt": lambda p, _: p.generation == 1,
        "norm": lambda p, _: p.norm == MambaNorm.GATED_RMS,
    },
    MLAParams: {
        "q": lambda p, _: p.q_lora_rank == 0,
        "q_a": lambda p, _: p.q_lora_rank > 0,
        "q_a_norm": lambda p, _: p.q_lora_rank > 0,
        "q_b": lambda p, _: p.q_lora_rank > 0,
    },
    EmbeddingParams: {"positions": lambda p, _: p.max_positions > 0, "types": lambda p, _: p.types > 0},
    VisionPatchEmbedParams: {"positions": lambda p, _: p.grid_positions > 0},
}
"""A slot that is filled exactly where the params switch its feature on."""

ONLY_IF: Final[Mapping[type[Params], Mapping[str, Feature]]] = {
    SwiGLUParams: {"gate_bias": _with("gate")},
    MoEParams: {
        "gate_bias": _with("gate"),
        "score_correction": lambda p, _: p.router_score != RouterScore.TOPK_THEN_SOFTMAX,
        "shared_router": _with("shared_up"),
    },
    MambaParams: {name: lambda p, _: p.norm == MambaNorm.RMS_DT_B_C for name in ("dt_norm", "b_norm", "c_norm")},
    MLAParams: {"q_a_bias": _with("q_a")},
    PoolParams: {"dense_bias": _with("dense"), "norm_bias": _with("norm"), "head_bias": _with("head")},
    VisionSpatialMergeParams: {"norm_bias": _with("norm"), "fc2_bias": _with("fc2")},
}
"""A slot that may be filled only under a condition."""

WIDTHS: Final[Mapping[type[Params], tuple[tuple[str, str, str], ...]]] = {
    PoolParams: (("dense", "dense", "hidden"), ("head", "out", "dense")),
    VisionSpatialMergeParams: (("fc2", "out", "intermediate"),),
}
"""(slot, a, b): where the slot is empty, sizes a and b are one."""


def value_findings(params: Params, ranges: Mapping[type[Params], Mapping[str, Range]] = RANGES) -> Iterator[str]:
    """Fields out of range."""
    for name, accepted in ranges[type(params)].items():
        value = getattr(params, name)
        if not accepted.holds(value):
            yield f"{name} is {value}, expected {accepted.text}"


def relation_findings(params: Params) -> Iterator[str]:
    """Fields that contradict one another; `params` must be in range."""
    relation = RELATIONS.get(type(params))
    return iter(()) if relation is None else relation(params)


def feature_findings(params: Params, present: frozenset[str]) -> Iterator[str]:
    """Weight slots that are empty or filled against the params."""
    for slot, needed in REQUIRED_IFF.get(type(params), {}).items():
        if needed(params, present) and slot not in present:
            yield f"the params need the weight {slot!r}, which is absent"
        if slot in present and not needed(params, present):
            yield f"the weight {slot!r} is there, but the params do not use it"
    for slot, allowed in ONLY_IF.get(type(params), {}).items():
        if slot in present and not allowed(params, present):
            yield f"the weight {slot!r} is there, but nothing uses it"
