"""Qwen3-MoE: Qwen3's layout with experts in all layers or some.

Yang et al. 2025, arXiv:2505.09388. Reference: transformers' modeling_qwen3_moe.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks, experts
from treadle.models.blocks import HF_LAYER
from treadle.models.config import declare
from treadle.models.decoder import decoder, pre_norm_layer
from treadle.models.experts import MAX_EXPERTS, ExpertsConfig
from treadle.models.registry import Family
from treadle.models.spec import Architecture, Op
from treadle.models.windows import every_layer_if_used
from treadle.plan.params import QKNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(ExpertsConfig):
    MODEL_TYPE: ClassVar[str] = "qwen3_moe"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Qwen3MoeForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "qwen3moe"

    num_experts: int = declare(gguf="expert_count", reader=experts.num_experts_or(128))
    num_experts_per_tok: int = declare(8, gguf="expert_used_count", bounds=(1, MAX_EXPERTS))
    moe_intermediate_size: int = declare(768, gguf="expert_feed_forward_length")
    norm_topk_prob: bool = declare(gguf="expert_weights_norm", reader=experts.norm_topk_prob)
    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")
    sparse: tuple[bool, ...] = declare(reader=experts.sparse_layers)
    windows: tuple[int, ...] = declare(reader=every_layer_if_used)


def architecture(config: Qwen3MoeConfig) -> Architecture:
    prefix = HF_LAYER + "mlp."
    moe = experts.moe(
        config.moe_params(config.moe_intermediate_size, normalise=int(config.norm_topk_prob)),
        experts.whole(prefix, router="gate.weight")
        | experts.apart(prefix, config.num_experts, **experts.projections("experts.{expert}.{part}_proj.weight")),
        config.hidden_size,
    )
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act)

    def layer(window: int, sparse: bool) -> tuple[Op, ...]:
        params = config.attention_params(window, qk_norm=QKNorm.RMS_PER_HEAD, qk_norm_eps=config.rms_norm_eps)
        attention = blocks.attention(params, config.rope, blocks.BIASES if config.attention_bias else ())
        return pre_norm_layer(config, attention, moe if sparse else mlp)

    return decoder(config, tuple(layer(*of_layer) for of_layer in zip(config.windows, config.sparse, strict=True)))


FAMILY = Family(Qwen3MoeConfig, architecture)
