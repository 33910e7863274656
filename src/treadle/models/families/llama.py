"""Llama 1-3 and the many models of the same layout: SmolLM2, TinyLlama, Yi, Vicuna.

Touvron et al. 2023, arXiv:2307.09288; Llama team 2024, arXiv:2407.21783. Reference: transformers' modeling_llama.py.
GGUF files of Mistral say "llama" too.
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
class LlamaConfig(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "llama"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM", "LLaMAForCausalLM")
    GGUF_ARCHITECTURE: ClassVar[str | None] = "llama"

    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")
    mlp_bias: bool = declare(False, gguf_tensor="blk.0.ffn_up.bias")
    sliding_window: int | None = declare(None, hf=None, gguf="attention.sliding_window", bounds=(1, 1 << 30))


def architecture(config: LlamaConfig) -> Architecture:
    attention = blocks.attention(
        config.attention_params(config.sliding_window),
        config.rope,
        biases=blocks.BIASES if config.attention_bias else (),
        gguf_permuted=True,
    )
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, config.mlp_bias)
    layer = pre_norm_layer(config, attention, mlp)
    return decoder(config, (layer,) * config.num_hidden_layers)


FAMILY = Family(LlamaConfig, architecture)
