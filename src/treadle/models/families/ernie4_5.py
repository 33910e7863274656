"""ERNIE 4.5, dense: Llama's layout whose heads are rotated in neighbouring pairs.

Baidu ERNIE Team 2025, "ERNIE 4.5 Technical Report". Reference: transformers' modeling_ernie4_5.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.decoder import GGUF_HEAD, DecoderConfig, decoder, head_dim_or, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.rope import Rope, theta_or
from treadle.models.spec import Architecture
from treadle.plan.params import RopeStyle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ernie45Config(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "ernie4_5"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Ernie4_5ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "ernie4_5"

    num_key_value_heads: int = declare(gguf="attention.head_count_kv", bounds=(1, 4096))
    head_dim: int = declare(reader=head_dim_or(128))
    rope: Rope = declare(reader=theta_or(5e5))
    tie_word_embeddings: bool = declare(True, gguf_tensor=f"!{GGUF_HEAD}")
    use_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")


def architecture(config: Ernie45Config) -> Architecture:
    params = config.attention_params(rope_style=RopeStyle.INTERLEAVED)
    attention = blocks.attention(params, config.rope, blocks.BIASES if config.use_bias else ())
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, config.use_bias)
    return decoder(config, (pre_norm_layer(config, attention, mlp),) * config.num_hidden_layers)


FAMILY = Family(Ernie45Config, architecture)
