"""One hand-built model that exercises every opcode, weight slot, state kind, container and stage."""

from __future__ import annotations

import msgspec
from tests.plan.builder import FACTS, Builder

from treadle.plan.ir import (
    CompiledPlan,
    Container,
    DType,
    Generator,
    GeneratorKind,
    Handoff,
    Layout,
    Lifecycle,
    ModelPlans,
    Source,
    Stage,
    Symbol,
    Transform,
    TransformKind,
)
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

HIDDEN = 32


def mixers(stage: Stage) -> CompiledPlan:
    """Every op that a decoder may have, on rows that an earlier stage hands over."""
    b = Builder(stage)
    x = b.input(DType.F32, Symbol.ROWS, HIDDEN)

    def layer(params, slots=""):
        return b.op(ResidualAddParams(0.5), [x, b.op(params, [b.op(RMSNormParams(1e-6, 1.0), [x], "gain")], slots)])

    x = layer(
        AttentionParams(
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            v_head_dim=16,
            scale=0.25,
            window=16,
            rotary_dim=4,
            rope_style=RopeStyle.INTERLEAVED,
            rope_scale=1.5,
            softcap=50.0,
            qk_norm=QKNorm.RMS_PER_HEAD,
            qk_norm_eps=1e-6,
            qk_norm_gain_offset=1.0,
            qkv_clip=8.0,
            output_gate=1,
            kv_dtype=DType.F16,
        ),
        "q_bias k_bias v_bias o_bias q_norm k_norm gate sinks rope_inv_freq slopes",
    )
    x = layer(
        AttentionParams(4, 4, 8, 8, 0.25, qk_norm=QKNorm.LAYERNORM_PER_HEAD, kv_dtype=DType.F16), "q_norm k_norm slopes"
    )
    for window in (0, 4, 8):
        x = layer(AttentionParams(4, 1, 8, 8, 0.35, window=window, rotary_dim=4, kv_dtype=DType.BF16), "rope_inv_freq")
    x = layer(SwiGLUParams(48, activation=Activation.GELU_TANH), "gate gate_bias up_bias down_bias")
    x = layer(SwiGLUParams(48, gated=0, activation=Activation.RELU2))
    x = layer(
        MoEParams(
            8,
            2,
            16,
            router_score=RouterScore.SIGMOID,
            normalise=1,
            normalise_eps=1e-20,
            routed_scale=2.5,
            num_groups=2,
            top_groups=1,
            group_score=GroupScore.SUM_TOP2,
            shared_intermediate=24,
        ),
        "score_correction gate shared_gate shared_up shared_down shared_router",
    )
    x = layer(
        MoEParams(
            4,
            4,
            16,
            activation=Activation.SWIGLU_CLAMPED,
            alpha=1.702,
            limit=7.0,
            router_score=RouterScore.TOPK_THEN_SOFTMAX,
        ),
        "router_bias gate gate_bias up_bias down_bias",
    )
    x = layer(
        MambaParams(1, 24, 4, 4, dt_rank=2, norm=MambaNorm.RMS_DT_B_C, norm_eps=1e-6),
        "in_bias conv_bias x dt dt_norm b_norm c_norm out_bias",
    )
    x = layer(
        MambaParams(2, 64, 16, 4, heads=8, groups=2, norm=MambaNorm.GATED_RMS, norm_groups=2, dt_min=0.001, dt_max=0.1),
        "conv_bias norm",
    )
    x = layer(ShortConvParams(32, 3), "in_bias conv_bias out_bias")
    x = layer(MLAParams(4, 0, 16, 8, 4, 8, 0.3, 1e-6), "q o_bias rope_inv_freq")
    x = layer(
        MLAParams(4, 24, 16, 8, 4, 8, 0.3, 1e-6, rope_scale=1.2, kv_dtype=DType.F16),
        "q_a q_a_bias q_a_norm q_b kv_a_bias rope_inv_freq",
    )
    x = layer(GatedDeltaNetParams(2, 4, 8, 8, 4, 1e-6), "conv_bias")
    x = layer(LayerNormParams(1e-5), "gain bias")
    x = layer(LayerNormParams(1e-5))
    return b.finish(b.op(LMHeadParams(96, scale=0.125, softcap=30.0), [x], "bias"))


def encoder() -> CompiledPlan:
    """Token, position and type embedding, attention both ways, a pooled head."""
    b = Builder(Stage.ENCODE)
    ids, types = b.input(DType.I32, Symbol.ROWS), b.input(DType.I32, Symbol.ROWS)
    x = b.op(EmbeddingParams(96, 2.0, 130, 2, 2), [ids, types], "positions types", hidden=HIDDEN)
    attention = AttentionParams(4, 4, 8, 8, 0.35, causal=0, window=5)
    x = b.op(ResidualAddParams(), [x, b.op(attention, [x], "q_bias k_bias v_bias o_bias")])
    pooled = PoolParams(3, Pooling.CLS, 1, Activation.TANH, 1e-5, Activation.SIGMOID)
    return b.finish(b.op(pooled, [x], "dense dense_bias norm norm_bias head head_bias", dense=HIDDEN))


def vision() -> CompiledPlan:
    b = Builder(Stage.VISION_ENCODE)
    patch = VisionPatchEmbedParams(4, 2, 3, 16)
    x = b.op(patch, [b.input(DType.F32, Symbol.ROWS, patch.dims()["patch"])], "bias positions", hidden=HIDDEN)
    tap = b.op(VisionDeepstackExtractParams(2, HIDDEN, 64, 1e-6), [x], "norm_bias fc1_bias fc2_bias", out=HIDDEN)
    x = b.op(AttentionParams(4, 4, 8, 8, 0.35, causal=0), [b.op(LayerNormParams(1e-6), [x], "gain bias")])
    merge = VisionSpatialMergeParams(2, HIDDEN, 64, 1e-6)
    return b.finish(b.op(merge, [x], "norm norm_bias fc1_bias fc2 fc2_bias", out=HIDDEN), tap)


def scatter() -> CompiledPlan:
    b = Builder(Stage.SCATTER)
    ids = b.input(DType.I32, Symbol.ROWS)
    image = b.input(DType.F32, Symbol.MERGED, HIDDEN)
    x = b.op(EmbeddingParams(96), [ids, None], hidden=HIDDEN)
    return b.finish(b.op(VisionScatterParams(95), [ids, x, image]))


def zoo() -> ModelPlans:
    stages = {"vision_encode": vision(), "scatter": scatter(), "encode": encoder()}
    stages |= {"prefill": dressed(mixers(Stage.PREFILL)), "decode": dressed(mixers(Stage.DECODE))}
    handoffs = tuple(
        Handoff(
            source=source,
            target=target,
            source_register=stages[source.name.lower()].plan.outputs[0],
            target_register=stages[target.name.lower()].plan.inputs[at],
            dtype=DType.F32,
            layout=Layout.ROW_MAJOR,
            owner=source,
            lifetime=Lifecycle.REQUEST_SCOPED,
            sync=source is Stage.VISION_ENCODE,
        )
        for source, target, at in ((Stage.VISION_ENCODE, Stage.SCATTER, 1), (Stage.SCATTER, Stage.PREFILL, 0))
    )
    return ModelPlans(FACTS, "5eed" * 16, "0.1.0", **stages, handoffs=handoffs)


def joined() -> ModelPlans:
    """Latent attention of which one container keeps the two parts of kv_b apart."""

    def stage(stage: Stage) -> CompiledPlan:
        b = Builder(stage)
        x = b.op(EmbeddingParams(96), [b.input(DType.I32, Symbol.ROWS), None], hidden=HIDDEN)
        x = b.op(MLAParams(4, 0, 16, 8, 4, 8, 0.3, 1e-6), [x], "q rope_inv_freq")
        compiled = b.finish(b.op(LMHeadParams(96), [x]))
        halves = Source(Container.GGUF, ("k_b", "v_b"), (Transform(TransformKind.JOIN_TURNED_HEADS),))
        bindings = tuple(
            msgspec.structs.replace(w, sources=(halves,)) if w.name.endswith(".kv_b") else w
            for w in compiled.weight_bindings
        )
        assert bindings != compiled.weight_bindings
        return msgspec.structs.replace(compiled, weight_bindings=bindings)

    stages = {"prefill": stage(Stage.PREFILL), "decode": stage(Stage.DECODE)}
    return ModelPlans(FACTS, "5eed" * 16, "0.1.0", **stages, handoffs=())


SOURCES = (
    (("w",), ()),
    (("w",), (Transform(TransformKind.ROPE_ROWS_FROM_INTERLEAVED, (4,)),)),
    (("w",), (Transform(TransformKind.SLICE_ROWS, (8, 16)),)),
    (("w",), (Transform(TransformKind.TRANSPOSE),)),
    (("w.0", "w.1"), (Transform(TransformKind.CONCAT_ROWS),)),
    (tuple(f"e.{i}.w" for i in range(8)), (Transform(TransformKind.STACK),)),
    (("w",), (Transform(TransformKind.SLICE_HEAD_ROWS, (4, 0, 8)),)),
    (("w",), (Transform(TransformKind.SLICE_FIRST, (0, 4)), Transform(TransformKind.NEGATIVE_EXP))),
    (("w",), (Transform(TransformKind.RESHAPE, (4, 8)), Transform(TransformKind.ADD_CONSTANT, (-1,)))),
    (("w",), (Transform(TransformKind.STRIDE_ROWS, (1, 2)),)),
    (("w",), (Transform(TransformKind.REGROUP_HEAD_ROWS, (2, 8, 8, 16)), Transform(TransformKind.SLICE_ROWS, (0, 16)))),
)
GENERATORS = {
    2: (
        Generator(GeneratorKind.ROPE_LINEAR, (4.0, 10000.0, 2.0)),
        Generator(GeneratorKind.ROPE_LLAMA3, (4.0, 500000.0, 8.0, 1.0, 4.0, 8192.0)),
        Generator(GeneratorKind.ROPE_YARN, (4.0, 10000.0, 4.0, 32.0, 1.0, 4096.0, 0.0)),
        Generator(GeneratorKind.ROPE_FACTORS, (4.0, 10000.0)),
        Generator(GeneratorKind.ROPE_FACTOR_LIST, (4.0, 10000.0, 1.0, 1.5)),
    ),
    4: (Generator(GeneratorKind.ALIBI_SLOPES, (4.0,)),),
}


def dressed(compiled: CompiledPlan) -> CompiledPlan:
    """The plan with every kind of source, transform and generator among its bindings. The pairing with slots means
    nothing: whether a transform gives a weight's shape is decided where the checkpoint is read."""
    bindings = []
    generators = {size: list(kinds) for size, kinds in GENERATORS.items()}
    for i, binding in enumerate(compiled.weight_bindings):
        name = binding.name.rsplit(".", 1)[1]
        if name == "rope_inv_freq" or (name == "slopes" and generators[4]):
            kinds = generators[binding.shape[0]]
            generator = kinds.pop(0) if kinds else binding.generator
            sources = (Source(Container.GGUF, ("rope_freqs.weight",)),)
            reads = generator.kind is GeneratorKind.ROPE_FACTORS
            binding = msgspec.structs.replace(
                binding, generator=generator, dtypes=(DType.F32,), sources=sources if reads else ()
            )
        elif binding.generator is None:
            tensors, transforms = SOURCES[i % len(SOURCES)]
            hf = Source(Container.SAFETENSORS, tuple(f"model.{binding.name}.{t}" for t in tensors), transforms)
            gguf = Source(Container.GGUF, (f"blk.{binding.name}",))
            binding = msgspec.structs.replace(binding, sources=(hf, gguf), dtypes=tuple(DType)[i % 4 :: 4])
        bindings.append(binding)
    return msgspec.structs.replace(compiled, weight_bindings=tuple(bindings))
