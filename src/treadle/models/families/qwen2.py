"""Qwen2 and Qwen2.5: Llama's layout with biases on q, k and v, and windows in the layers from one on.

Yang et al. 2024, arXiv:2407.10671. Reference: transformers' modeling_qwen2.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.decoder import DecoderConfig, decoder, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.spec import Architecture, Op
from treadle.models.windows import from_layer_on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Config(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "qwen2"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Qwen2ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "qwen2"

    num_key_value_heads: int = declare(gguf="attention.head_count_kv", bounds=(1, 4096))
    windows: tuple[int, ...] = declare(reader=from_layer_on)


def architecture(config: Qwen2Config) -> Architecture:
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act)

    def layer(window: int) -> tuple[Op, ...]:
        biases = blocks.QKV_BIASES
        return pre_norm_layer(config, blocks.attention(config.attention_params(window), config.rope, biases), mlp)

    return decoder(config, tuple(layer(window) for window in config.windows))


FAMILY = Family(Qwen2Config, architecture)
