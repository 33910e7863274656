"""Gemma: gated GELU, gains kept less 1, a scaled embedding, heads of a width of their own.

Gemma Team 2024, arXiv:2403.08295. Reference: transformers' modeling_gemma.py. Gemma 2 and 3 share the config below.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final

from treadle.models import blocks
from treadle.models.blocks import ACTIVATIONS, Norm
from treadle.models.config import declare
from treadle.models.decoder import GGUF_HEAD, DecoderConfig, decoder, head_dim_or, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.spec import Architecture
from treadle.plan.params import Activation

GEMMA_ACTIVATIONS: Final = {**ACTIVATIONS, "gelu": Activation.GELU_TANH}
"""The first configs say "gelu" and mean its tanh form."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseGemmaConfig(DecoderConfig):
    """What the Gemma generations share."""

    num_key_value_heads: int = declare(gguf="attention.head_count_kv", bounds=(1, 4096))
    head_dim: int = declare(reader=head_dim_or(256))
    tie_word_embeddings: bool = declare(True, gguf_tensor=f"!{GGUF_HEAD}")
    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")

    @property
    def norm(self) -> Norm:
        return Norm(eps=self.rms_norm_eps, one_plus=True)

    @property
    def embedding_scale(self) -> float:
        return float(self.hidden_size**0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmaConfig(BaseGemmaConfig):
    MODEL_TYPE: ClassVar[str] = "gemma"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("GemmaForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "gemma"
    ONLY: ClassVar[dict[str, object]] = {"hidden_activation": "gelu_pytorch_tanh"}

    hidden_act: Activation = declare(Activation.GELU_TANH, choices=GEMMA_ACTIVATIONS)


def architecture(config: GemmaConfig) -> Architecture:
    attention = blocks.attention(config.attention_params(), config.rope, blocks.BIASES if config.attention_bias else ())
    layer = pre_norm_layer(config, attention, blocks.mlp(config.intermediate_size, config.hidden_act))
    return decoder(config, (layer,) * config.num_hidden_layers, embedding_scale=config.embedding_scale)


FAMILY = Family(GemmaConfig, architecture)
