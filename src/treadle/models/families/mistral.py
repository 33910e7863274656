"""Mistral 7B and its successors: Llama's layout with a sliding window over the keys.

Jiang et al. 2023, arXiv:2310.06825. Reference: transformers' modeling_mistral.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.decoder import DecoderConfig, decoder, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.spec import Architecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class MistralConfig(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "mistral"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("MistralForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "llama"

    sliding_window: int | None = declare(4096, gguf="attention.sliding_window", bounds=(1, 1 << 30))


def architecture(config: MistralConfig) -> Architecture:
    attention = blocks.attention(config.attention_params(config.sliding_window), config.rope, gguf_permuted=True)
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act)
    layer = pre_norm_layer(config, attention, mlp)
    return decoder(config, (layer,) * config.num_hidden_layers)


FAMILY = Family(MistralConfig, architecture)
