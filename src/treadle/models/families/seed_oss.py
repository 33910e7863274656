"""Seed-OSS: Llama's layout with biases of q, k and v.

ByteDance Seed Team 2025, github.com/ByteDance-Seed/seed-oss. Reference: transformers' modeling_seed_oss.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.decoder import DecoderConfig, decoder, head_dim_or, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.spec import Architecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedOssConfig(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "seed_oss"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("SeedOssForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "seed_oss"
    IGNORED: ClassVar[frozenset[str]] = frozenset({"residual_dropout"})

    num_key_value_heads: int = declare(gguf="attention.head_count_kv", bounds=(1, 4096))
    head_dim: int = declare(reader=head_dim_or(128))
    attention_bias: bool = declare(True, gguf_tensor="blk.0.attn_q.bias")
    attention_out_bias: bool = declare(False, gguf_tensor="blk.0.attn_output.bias")
    mlp_bias: bool = declare(False, gguf_tensor="blk.0.ffn_up.bias")


def architecture(config: SeedOssConfig) -> Architecture:
    biases = blocks.QKV_BIASES * config.attention_bias + ("o_bias",) * config.attention_out_bias
    attention = blocks.attention(config.attention_params(), config.rope, biases)
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, config.mlp_bias)
    layer = pre_norm_layer(config, attention, mlp, gguf_mlp_norm="post_attention_norm")
    return decoder(config, (layer,) * config.num_hidden_layers)


FAMILY = Family(SeedOssConfig, architecture)
