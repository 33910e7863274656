"""Qwen3, dense: Qwen2's layout with RMS norms on the heads of q and k instead of biases.

Yang et al. 2025, arXiv:2505.09388. Reference: transformers' modeling_qwen3.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.decoder import DecoderConfig, decoder, head_dim_or, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.spec import Architecture, Op
from treadle.models.windows import from_layer_on
from treadle.plan.params import QKNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "qwen3"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Qwen3ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "qwen3"

    num_key_value_heads: int = declare(gguf="attention.head_count_kv", bounds=(1, 4096))
    head_dim: int = declare(reader=head_dim_or(128))
    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")
    windows: tuple[int, ...] = declare(reader=from_layer_on)


def architecture(config: Qwen3Config) -> Architecture:
    biases = blocks.BIASES if config.attention_bias else ()
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act)

    def layer(window: int) -> tuple[Op, ...]:
        params = config.attention_params(window, qk_norm=QKNorm.RMS_PER_HEAD, qk_norm_eps=config.rms_norm_eps)
        return pre_norm_layer(config, blocks.attention(params, config.rope, biases), mlp)

    return decoder(config, tuple(layer(window) for window in config.windows))


FAMILY = Family(Qwen3Config, architecture)
