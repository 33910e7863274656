"""Random well-formed plans over all opcodes, for property tests."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st
from tests.plan.builder import FACTS, Builder

from treadle.plan.ir import CompiledPlan, DType, ModelPlans, Stage, Symbol
from treadle.plan.params import (
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
)

HIDDEN = 16
small = st.integers(1, 4)
width = st.integers(1, 24)
flag = st.integers(0, 1)
eps = st.sampled_from([0.0, 1e-6, 1e-5])
number = st.floats(-1e3, 1e3, width=32)
positive = st.floats(0.125, 64.0, width=32)
plain = st.sampled_from([a for a in Activation if a is not Activation.SWIGLU_CLAMPED])
state_dtype = st.sampled_from([DType.F32, DType.F16, DType.BF16])


def some(draw, *slots: str) -> str:
    """Any of these weights."""
    return " ".join(draw(st.lists(st.sampled_from(slots), unique=True)))


def attention(draw, causal: int):
    kv_heads, head_dim = draw(small), draw(width)
    norm, gate = draw(st.sampled_from(QKNorm)), draw(flag)
    rotary = 2 * draw(st.integers(0, head_dim // 2))
    params = AttentionParams(
        num_heads=kv_heads * draw(small),
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=draw(width),
        scale=draw(positive),
        causal=causal,
        window=draw(st.integers(0, 2**31 - 1)),
        rotary_dim=rotary,
        rope_style=draw(st.sampled_from(RopeStyle)),
        softcap=draw(st.just(0.0) | positive),
        qk_norm=norm,
        output_gate=gate,
        kv_dtype=draw(state_dtype),
    )
    slots = some(draw, "q_bias", "k_bias", "v_bias", "o_bias", "sinks", "slopes")
    slots += " q_norm k_norm" * (norm != QKNorm.NONE) + " gate" * gate + " rope_inv_freq" * (rotary > 0)
    return params, slots


def swiglu(draw):
    gated = draw(flag)
    params = SwiGLUParams(draw(width), gated, draw(plain))
    return params, some(draw, "up_bias", "down_bias") + " gate" * gated


def clamped(draw):
    return SwiGLUParams(draw(width), 1, Activation.SWIGLU_CLAMPED, draw(positive), draw(positive)), "gate gate_bias"


def moe(draw):
    groups, each, gated = draw(small), draw(st.integers(2, 4)), draw(flag)
    chosen, shared = draw(st.integers(1, groups)), draw(st.integers(0, 8))
    score = draw(st.sampled_from(RouterScore))
    params = MoEParams(
        num_experts=groups * each,
        experts_per_token=draw(st.integers(1, chosen * each)),
        intermediate=draw(width),
        gated=gated,
        activation=draw(plain),
        router_score=score,
        normalise=draw(flag),
        routed_scale=draw(number),
        num_groups=groups,
        top_groups=chosen,
        group_score=draw(st.sampled_from(GroupScore)),
        shared_intermediate=shared,
    )
    slots = some(draw, "router_bias", "up_bias", "down_bias") + " gate" * gated
    slots += " score_correction" * (score != RouterScore.TOPK_THEN_SOFTMAX)
    if shared:
        slots += " shared_up shared_down shared_router" + " shared_gate" * gated
    return params, slots


def mamba(draw):
    if draw(st.booleans()):
        norm = draw(st.sampled_from([MambaNorm.NONE, MambaNorm.RMS_DT_B_C]))
        params = MambaParams(1, draw(width), draw(width), draw(small), dt_rank=draw(small), norm=norm, norm_eps=1e-5)
        slots = "x dt" + " dt_norm b_norm" * (norm == MambaNorm.RMS_DT_B_C)
    else:
        norm = draw(st.sampled_from([MambaNorm.NONE, MambaNorm.GATED_RMS]))
        groups, per_group, head_dim = draw(small), draw(small), draw(small)
        heads = groups * per_group
        params = MambaParams(
            2, heads * head_dim, draw(width), draw(small), heads=heads, groups=groups, norm=norm, norm_groups=groups
        )
        slots = " norm" * (norm == MambaNorm.GATED_RMS)
    return params, f"{slots} {some(draw, 'in_bias', 'conv_bias', 'out_bias')}"


def shortconv(draw):
    return ShortConvParams(draw(width), draw(small)), some(draw, "in_bias", "conv_bias", "out_bias")


def mla(draw):
    rank = draw(st.integers(0, 8))
    params = MLAParams(
        num_heads=draw(small),
        q_lora_rank=rank,
        kv_lora_rank=draw(width),
        nope_dim=draw(width),
        rope_dim=2 * draw(small),
        v_head_dim=draw(width),
        scale=draw(positive),
        norm_eps=draw(eps),
        kv_dtype=draw(state_dtype),
    )
    return params, some(draw, "kv_a_bias", "o_bias") + (" q_a q_a_norm q_b q_a_bias" if rank else " q")


def delta(draw):
    heads = draw(small)
    params = GatedDeltaNetParams(heads, heads * draw(small), draw(width), draw(width), draw(small), draw(eps))
    return params, some(draw, "conv_bias")


def rmsnorm(draw):
    return RMSNormParams(draw(eps), draw(number)), some(draw, "gain")


def layernorm(draw):
    return LayerNormParams(draw(eps), draw(number)), some(draw, "gain", "bias")


UNARY = {
    Stage.PREFILL: (lambda draw: attention(draw, 1), swiglu, clamped, moe, mamba, shortconv, mla, delta),
    Stage.ENCODE: (lambda draw: attention(draw, 0), lambda draw: attention(draw, 1), swiglu, moe),
    Stage.VISION_ENCODE: (lambda draw: attention(draw, 0), swiglu),
}
UNARY = {stage: (*ops, rmsnorm, layernorm) for stage, ops in UNARY.items()}


@st.composite
def compiled_plans(draw, stage: Stage | None = None) -> CompiledPlan:
    """A plan whose ops read any earlier rows, so that registers die in every order."""
    if stage is None:
        stage = draw(st.sampled_from([Stage.PREFILL] * 4 + [Stage.ENCODE, Stage.VISION_ENCODE, Stage.SCATTER]))
    b = Builder(stage, page_tokens=draw(st.sampled_from([1, 16, 64])))
    if stage is Stage.VISION_ENCODE:
        return _vision(draw, b)
    ids = b.input(DType.I32, Symbol.ROWS)
    positions, types = draw(st.integers(0, 64)), draw(st.integers(0, 2))
    type_ids = b.input(DType.I32, Symbol.ROWS) if types and draw(st.booleans()) else None
    embedding = EmbeddingParams(draw(width), draw(number), positions, 0, types)
    rows = [b.op(embedding, [ids, type_ids], "positions " * (positions > 0) + "types" * (types > 0), hidden=HIDDEN)]
    if stage is Stage.SCATTER:
        image = b.input(DType.F32, Symbol.MERGED, HIDDEN)
        rows.append(b.op(VisionScatterParams(draw(width)), [ids, rows[0], image]))
    if stage is Stage.SCATTER:
        return b.finish(rows[1])
    x = _body(draw, b, rows)
    if stage is Stage.ENCODE and draw(st.booleans()):
        dense, out = draw(width), draw(width)
        params = PoolParams(out, draw(st.sampled_from(Pooling)), draw(flag), draw(plain), draw(eps), draw(plain))
        return b.finish(b.op(params, [x], "dense norm head " + some(draw, "dense_bias", "head_bias"), dense=dense))
    if draw(st.booleans()):
        return b.finish(b.op(LMHeadParams(draw(width)), [x], some(draw, "bias")))
    return b.finish(b.op(LMHeadParams(draw(width)), [x]), b.op(RMSNormParams(0.0), [x]))


def _vision(draw, b: Builder) -> CompiledPlan:
    grid = draw(st.integers(0, 9))
    patch = VisionPatchEmbedParams(draw(small), draw(small), draw(small), grid)
    pixels = b.input(DType.F32, Symbol.ROWS, patch.dims()["patch"])
    rows = [b.op(patch, [pixels], "positions" * (grid > 0), hidden=HIDDEN)]
    tap = VisionDeepstackExtractParams(draw(small), HIDDEN, draw(width), draw(eps), draw(flag))
    outputs = [b.op(tap, rows, some(draw, "norm_bias", "fc1_bias"), out=HIDDEN)] if draw(st.booleans()) else []
    merge = VisionSpatialMergeParams(draw(small), HIDDEN, draw(width), draw(eps), draw(flag))
    return b.finish(b.op(merge, [_body(draw, b, rows)], "norm norm_bias fc2", out=HIDDEN), *outputs)


def _body(draw, b: Builder, rows: list[int]) -> int:
    """Some ops over any of the rows so far; sums then take in what nobody has read, so that no register is dead."""
    for _ in range(draw(st.integers(0, 9))):
        if draw(st.integers(0, 2)):
            params, slots = draw(st.sampled_from(UNARY[b.stage]))(draw)
            rows.append(b.op(params, [draw(st.sampled_from(rows))], slots))
        else:
            a, c = draw(st.sampled_from(rows)), draw(st.sampled_from(rows))
            rows.append(b.op(ResidualAddParams(draw(number)), [a, c]))
    read = {r for instruction in b.instructions for r in instruction.inputs}
    x, *unread = [r for r in reversed(rows) if r not in read] or rows
    for r in unread:
        x = b.op(ResidualAddParams(), [x, r])
    return x


@st.composite
def model_plans(draw) -> ModelPlans:
    """A decoder or an encoder, perhaps with the stages of images before it."""
    vision = draw(st.none() | compiled_plans(Stage.VISION_ENCODE))
    scatter = draw(st.none() | compiled_plans(Stage.SCATTER))
    body = draw(compiled_plans(draw(st.sampled_from([Stage.PREFILL, Stage.ENCODE]))))
    stages = {"encode": body}
    if body.stage is Stage.PREFILL:
        stages = {"prefill": body, "decode": msgspec.structs.replace(body, stage=Stage.DECODE)}
    config_hash = draw(st.text("0123456789abcdef", min_size=1, max_size=64))
    return ModelPlans(FACTS, config_hash, "0.1.0", vision_encode=vision, scatter=scatter, **stages)
