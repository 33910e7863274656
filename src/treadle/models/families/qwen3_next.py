"""Qwen3-Next: gated delta nets, with gated attention in every fourth layer, and experts with a gated shared one.

Qwen Team 2025 (Qwen3-Next); Yang et al. 2024, arXiv:2412.06464, for the delta rule. Reference: transformers'
modeling_qwen3_next.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from treadle.models import blocks, experts, mixers
from treadle.models.blocks import HF_LAYER, Norm
from treadle.models.config import Keys, convert, declare
from treadle.models.decoder import decoder, head_dim_or
from treadle.models.experts import MAX_EXPERTS, GatedSharedConfig
from treadle.models.hybrid import Attends, by_layer_types
from treadle.models.registry import Family
from treadle.models.rope import Rope, partial_rope
from treadle.models.spec import Architecture, Op
from treadle.plan.ir import Container, Transform, TransformKind
from treadle.plan.params import GatedDeltaNetParams, QKNorm

ONE_PLUS = (Transform(TransformKind.ADD_CONSTANT, (1,)),)
KINDS = {"full_attention": True, "linear_attention": False}


def by_interval(keys: Keys, layers: int) -> Attends:
    """Every full_attention_interval-th layer attends."""
    found = keys.take("full_attention_interval")
    interval = int(convert(keys, "full_attention_interval", 4 if found is None else found, int))
    return tuple((layer + 1) % interval == 0 for layer in range(layers))


def read_attends(keys: Keys, values: Mapping[str, Any]) -> Attends:
    """GGUF has the interval, and may have a flag a layer of those that do not attend."""
    layers = int(values["num_hidden_layers"])
    if keys.container is not Container.GGUF:
        return by_layer_types(KINDS, by_interval)(keys, layers)
    recurrent, attends = keys.take("attention.recurrent_layers"), by_interval(keys, layers)
    if recurrent is None:
        return attends
    if not isinstance(recurrent, list) or len(recurrent) != layers:
        keys.refuse("attention.recurrent_layers", recurrent, f"{layers} flags")
    return tuple(not flag for flag in recurrent)


def read_value_head_dim(keys: Keys, values: Mapping[str, Any]) -> int:
    """GGUF states the width of all value heads."""
    if keys.container is not Container.GGUF:
        found = keys.take("linear_value_head_dim")
        return int(convert(keys, "linear_value_head_dim", 128 if found is None else found, int))
    inner = int(convert(keys, "ssm.inner_size", keys.take("ssm.inner_size"), int))
    if inner % values["linear_num_value_heads"]:
        keys.refuse("ssm.inner_size", inner, f"a multiple of {values['linear_num_value_heads']} heads")
    return inner // int(values["linear_num_value_heads"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3NextConfig(GatedSharedConfig):
    MODEL_TYPE: ClassVar[str] = "qwen3_next"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Qwen3NextForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "qwen3next"
    ONLY: ClassVar[Mapping[str, object]] = {"attention_bias": False, "use_sliding_window": False}

    intermediate_size: int = declare(5632, gguf="feed_forward_length")
    num_key_value_heads: int = declare(2, gguf="attention.head_count_kv", bounds=(1, 4096))
    head_dim: int = declare(reader=head_dim_or(256))
    rope: Rope | None = declare(reader=partial_rope(0.25))
    rms_norm_eps: float = declare(1e-6, gguf="attention.layer_norm_rms_epsilon", bounds=(0.0, 1.0))
    num_experts: int = declare(gguf="expert_count", reader=experts.num_experts_or(512))
    num_experts_per_tok: int = declare(10, gguf="expert_used_count", bounds=(1, MAX_EXPERTS))
    moe_intermediate_size: int = declare(512, gguf="expert_feed_forward_length")
    shared_expert_intermediate_size: int = declare(512, gguf="expert_shared_feed_forward_length")
    norm_topk_prob: bool = declare(True, gguf="expert_weights_norm")
    sparse: tuple[bool, ...] = declare(reader=experts.sparse_layers)
    attends: tuple[bool, ...] = declare(reader=read_attends)
    linear_conv_kernel_dim: int = declare(4, gguf="ssm.conv_kernel", bounds=(1, 64))
    linear_num_key_heads: int = declare(16, gguf="ssm.group_count", bounds=(1, 4096))
    linear_num_value_heads: int = declare(32, gguf="ssm.time_step_rank", bounds=(1, 4096))
    linear_key_head_dim: int = declare(128, gguf="ssm.state_size", bounds=(1, 4096))
    linear_value_head_dim: int = declare(reader=read_value_head_dim)

    def check(self, keys: Keys) -> None:
        super().check(keys)
        heads = self.linear_num_key_heads
        if self.linear_num_value_heads % heads:
            keys.refuse("linear_num_value_heads", self.linear_num_value_heads, f"a multiple of {heads} key heads")

    @property
    def norm(self) -> Norm:
        return Norm(eps=self.rms_norm_eps, one_plus=True)


def architecture(config: Qwen3NextConfig) -> Architecture:
    params = config.attention_params(qk_norm=QKNorm.RMS_PER_HEAD, qk_norm_eps=config.rms_norm_eps, output_gate=1)
    cut = blocks.gated_q(params)
    attention = blocks.attention(
        params, config.rope, gguf_transforms=cut, hf_transforms={**cut, "q_norm": ONE_PLUS, "k_norm": ONE_PLUS}
    )
    delta = GatedDeltaNetParams(
        num_k_heads=config.linear_num_key_heads,
        num_v_heads=config.linear_num_value_heads,
        k_head_dim=config.linear_key_head_dim,
        v_head_dim=config.linear_value_head_dim,
        conv_width=config.linear_conv_kernel_dim,
        norm_eps=config.rms_norm_eps,
        activation=config.hidden_act,
    )
    mixer = mixers.gated_delta_net(delta, HF_LAYER + "linear_attn.")
    moe, mlp = config.moe(), blocks.mlp(config.intermediate_size, config.hidden_act)

    def layer(attends: bool, sparse: bool) -> tuple[Op, ...]:
        return (
            config.norm.of_layer("mixer_norm", "input_layernorm", "attn_norm"),
            attention if attends else mixer,
            blocks.residual(),
            config.norm.of_layer("mlp_norm", "post_attention_layernorm", "post_attention_norm"),
            moe if sparse else mlp,
            blocks.residual(),
        )

    layers = tuple(layer(*of_layer) for of_layer in zip(config.attends, config.sparse, strict=True))
    return decoder(config, layers, unused=("mtp.*",))


FAMILY = Family(Qwen3NextConfig, architecture)
