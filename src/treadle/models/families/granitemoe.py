"""Granite 3 MoE: Granite's layout with experts in place of the MLP.

IBM Granite Team 2024 (Granite 3.0 Language Models); Shen et al. 2024, arXiv:2408.13359, for the multipliers.
Reference: transformers' modeling_granitemoe.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks, experts
from treadle.models.blocks import HF_LAYER
from treadle.models.config import declare
from treadle.models.decoder import decoder, pre_norm_layer
from treadle.models.experts import ExpertsConfig
from treadle.models.families.granite import read_attention_multiplier
from treadle.models.registry import Family
from treadle.models.spec import Architecture
from treadle.plan.params import RouterScore


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteMoeConfig(ExpertsConfig):
    MODEL_TYPE: ClassVar[str] = "granitemoe"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("GraniteMoeForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "granitemoe"

    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")
    attention_multiplier: float = declare(reader=read_attention_multiplier)
    embedding_multiplier: float = declare(1.0, gguf="embedding_scale")
    residual_multiplier: float = declare(1.0, gguf="residual_scale")
    logits_scaling: float = declare(1.0, gguf="logit_scale")


def architecture(config: GraniteMoeConfig) -> Architecture:
    attention = blocks.attention(
        config.attention_params(scale=config.attention_multiplier),
        config.rope,
        biases=blocks.BIASES if config.attention_bias else (),
        gguf_permuted=True,
    )
    prefix = HF_LAYER + "block_sparse_moe."
    moe = experts.moe(
        config.moe_params(config.intermediate_size, router_score=RouterScore.TOPK_THEN_SOFTMAX),
        experts.whole(prefix, router="router.layer.weight")
        | experts.fused(prefix, config.intermediate_size, "input_linear.weight", "output_linear.weight"),
        config.hidden_size,
    )
    layer = pre_norm_layer(config, attention, moe, config.residual_multiplier)
    return decoder(
        config,
        (layer,) * config.num_hidden_layers,
        embedding_scale=config.embedding_multiplier,
        logit_scale=1.0 / config.logits_scaling,
    )


FAMILY = Family(GraniteMoeConfig, architecture)
