"""gpt-oss: experts with biases and a clamped gate, stored as mxfp4; sinks; a window in every other layer; YaRN.

OpenAI 2025, arXiv:2508.10925. Reference: transformers' modeling_gpt_oss.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from treadle.models import blocks, experts
from treadle.models.blocks import HF_LAYER
from treadle.models.config import Keys, convert, declare
from treadle.models.decoder import decoder, head_dim_or, pre_norm_layer
from treadle.models.experts import MAX_EXPERTS, ExpertsConfig
from treadle.models.registry import Family
from treadle.models.rope import Rope, theta_or
from treadle.models.spec import Architecture, Names, Op
from treadle.models.windows import every_nth_full
from treadle.plan.ir import Container, GeneratorKind, Transform, TransformKind
from treadle.plan.params import Activation, RouterScore

GGUF_EXPERTS = "blk.0.ffn_gate_exps.weight"


def read_rope(keys: Keys, values: Mapping[str, Any]) -> Rope:
    """YaRN whose ramp is not cut to whole dims, which GGUF has no key for. A config.json must state its rope."""
    stated = any(keys.take(key) is not None for key in ("rope_parameters", "rope_scaling"))
    if keys.container is Container.SAFETENSORS and not stated:
        keys.refuse("rope_parameters", None, "an object")
    rope = theta_or(150000.0)(keys, values)
    if keys.container is Container.GGUF and rope.kind is GeneratorKind.ROPE_YARN:
        return dataclasses.replace(rope, args=(*rope.args[:-1], 0.0))
    return rope


def read_intermediate_size(keys: Keys, values: Mapping[str, Any]) -> int:
    """GGUF states it twice."""
    if keys.container is Container.SAFETENSORS:
        return int(convert(keys, "intermediate_size", keys.take("intermediate_size"), int))
    stated, of_experts = keys.take("feed_forward_length"), keys.take("expert_feed_forward_length")
    if stated is not None and of_experts not in (None, stated):
        keys.refuse("expert_feed_forward_length", of_experts, f"{stated}, as feed_forward_length")
    return int(convert(keys, "feed_forward_length", of_experts if stated is None else stated, int))


def read_mxfp4(keys: Keys, values: Mapping[str, Any]) -> bool:
    """Whether experts are stored as mxfp4: then their rows lie in the usual order, else transposed."""
    if keys.container is Container.GGUF:
        return GGUF_EXPERTS in keys.tensors and keys.tensors[GGUF_EXPERTS].dtype == "mxfp4"
    found = keys.take("quantization_config")
    if found is not None and (not isinstance(found, dict) or found.get("quant_method") != "mxfp4"):
        keys.refuse("quantization_config", found, "quant_method mxfp4")
    return found is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GptOssConfig(ExpertsConfig):
    MODEL_TYPE: ClassVar[str] = "gpt_oss"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("GptOssForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "gpt-oss"
    # What the experts' activation says is not looked at; the initial context is that of the rope.
    IGNORED: ClassVar[frozenset[str]] = frozenset({"hidden_act", "experts_per_token", "initial_context_length"})

    intermediate_size: int = declare(gguf="feed_forward_length", reader=read_intermediate_size)
    head_dim: int = declare(reader=head_dim_or(64))
    hidden_act: Activation = declare(Activation.SWIGLU_CLAMPED, hf=None)
    rope: Rope = declare(reader=read_rope)
    num_experts: int = declare(gguf="expert_count", reader=experts.num_experts_or(128))
    num_experts_per_tok: int = declare(4, gguf="expert_used_count", bounds=(1, MAX_EXPERTS))
    swiglu_alpha: float = declare(1.702)
    swiglu_limit: float = declare(7.0)
    attention_bias: bool = declare(True, gguf_tensor="blk.0.attn_q.bias")
    windows: tuple[int, ...] = declare(reader=every_nth_full(2, 128))
    mxfp4: bool = declare(reader=read_mxfp4)


def expert_slots(config: GptOssConfig) -> dict[str, Names]:
    """The rows of gate and up take turns in one tensor. Floats are stored [experts, in, out]."""
    count, inner, hidden = config.num_experts, config.intermediate_size, config.hidden_size
    prefix, turned = HF_LAYER + "mlp.experts.", () if config.mxfp4 else (Transform(TransformKind.TRANSPOSE),)

    def every_second(name: str, start: int, shape: tuple[int, ...], before: tuple[Transform, ...] = ()) -> Names:
        rows = Transform(TransformKind.RESHAPE, (2 * count * inner, *shape))
        half = Transform(TransformKind.STRIDE_ROWS, (start, 2))
        return Names((prefix + name,), (*before, rows, half, Transform(TransformKind.RESHAPE, (count, inner, *shape))))

    return {
        "gate": every_second("gate_up_proj", 0, (hidden,), turned),
        "up": every_second("gate_up_proj", 1, (hidden,), turned),
        "down": Names((prefix + "down_proj",), turned),
        "gate_bias": every_second("gate_up_proj_bias", 0, ()),
        "up_bias": every_second("gate_up_proj_bias", 1, ()),
        "down_bias": Names((prefix + "down_proj_bias",)),
    }


def architecture(config: GptOssConfig) -> Architecture:
    params = config.moe_params(
        config.intermediate_size,
        router_score=RouterScore.TOPK_THEN_SOFTMAX,
        alpha=config.swiglu_alpha,
        limit=config.swiglu_limit,
    )
    router = experts.whole(HF_LAYER + "mlp.", router="router.weight", router_bias="router.bias")
    moe = experts.moe(params, router | expert_slots(config), config.hidden_size)
    present = ("sinks", *(blocks.BIASES if config.attention_bias else ()))
    names = {**blocks.ATTENTION, "sinks": ("sinks", "attn_sinks.weight")}

    def layer(window: int) -> tuple[Op, ...]:
        attention = blocks.attention(config.attention_params(window), config.rope, present, names=names)
        return pre_norm_layer(config, attention, moe, gguf_mlp_norm="post_attention_norm")

    return decoder(config, tuple(layer(window) for window in config.windows))


FAMILY = Family(GptOssConfig, architecture)
