"""Granite 3, dense: Llama's layout with multipliers on embedding, scores, residuals and logits.

IBM Granite Team 2024 (Granite 3.0 Language Models); Shen et al. 2024, arXiv:2408.13359, for the multipliers.
Reference: transformers' modeling_granite.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from treadle.models import blocks
from treadle.models.config import Keys, declare
from treadle.models.decoder import DecoderConfig, decoder, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.spec import Architecture, Op
from treadle.plan.ir import Container


def read_attention_multiplier(keys: Keys, values: Mapping[str, Any]) -> float:
    """A config.json without it means 1, a GGUF file the usual head_dim^-1/2."""
    if keys.container is Container.GGUF:
        return keys.number("attention.scale", values["head_dim"] ** -0.5)
    return keys.number("attention_multiplier", 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipliedConfig(DecoderConfig):
    """The fields of every Granite."""

    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")
    attention_multiplier: float = declare(reader=read_attention_multiplier)
    embedding_multiplier: float = declare(1.0, gguf="embedding_scale")
    residual_multiplier: float = declare(1.0, gguf="residual_scale")
    logits_scaling: float = declare(1.0, gguf="logit_scale")


def multiplied(config: MultipliedConfig, mlps: Sequence[Op], mixers: Sequence[Op | None] | None = None) -> Architecture:
    """Layers of attention, or of a mixer where there is one, and an MLP, with the multipliers."""
    attention = blocks.attention(
        config.attention_params(scale=config.attention_multiplier),
        config.rope,
        biases=blocks.BIASES if config.attention_bias else (),
        gguf_permuted=True,
    )
    layers = zip(mixers or [None] * len(mlps), mlps, strict=True)
    return decoder(
        config,
        tuple(pre_norm_layer(config, mixer or attention, mlp, config.residual_multiplier) for mixer, mlp in layers),
        embedding_scale=config.embedding_multiplier,
        logit_scale=1.0 / config.logits_scaling,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteConfig(MultipliedConfig):
    MODEL_TYPE: ClassVar[str] = "granite"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("GraniteForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "granite"

    mlp_bias: bool = declare(False, gguf_tensor="blk.0.ffn_up.bias")


def architecture(config: GraniteConfig) -> Architecture:
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, config.mlp_bias)
    return multiplied(config, [mlp] * config.num_hidden_layers)


FAMILY = Family(GraniteConfig, architecture)
