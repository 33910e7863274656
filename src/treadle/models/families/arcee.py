"""Arcee's AFM: Llama's layout with a plain MLP of squared ReLU.

Arcee AI 2025, arcee.ai/blog/deep-dive-afm-4-5b; squared ReLU: So et al. 2021, arXiv:2109.08668.
Reference: transformers' modeling_arcee.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.decoder import DecoderConfig, decoder, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.spec import Architecture
from treadle.plan.params import Activation


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArceeConfig(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "arcee"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("ArceeForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "arcee"

    hidden_act: Activation = declare(Activation.RELU2, choices=blocks.ACTIVATIONS)
    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")
    mlp_bias: bool = declare(False, gguf_tensor="blk.0.ffn_up.bias")


def architecture(config: ArceeConfig) -> Architecture:
    biases = blocks.BIASES if config.attention_bias else ()
    attention = blocks.attention(config.attention_params(), config.rope, biases, gguf_permuted=True)
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, config.mlp_bias, gated=False)
    return decoder(config, (pre_norm_layer(config, attention, mlp),) * config.num_hidden_layers)


FAMILY = Family(ArceeConfig, architecture)
