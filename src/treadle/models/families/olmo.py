"""OLMo: Llama's layout with LayerNorms that have no weights, and projections that may be clipped.

Groeneveld et al. 2024, arXiv:2402.00838. Reference: transformers' modeling_olmo.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks
from treadle.models.blocks import Norm
from treadle.models.config import declare
from treadle.models.decoder import LayerNormDecoderConfig, decoder, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.spec import Architecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class OlmoConfig(LayerNormDecoderConfig):
    MODEL_TYPE: ClassVar[str] = "olmo"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("OlmoForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "olmo"

    layer_norm_eps: float = declare(1e-5, hf=None, gguf="attention.layer_norm_epsilon", bounds=(0.0, 1.0))
    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")
    clip_qkv: float | None = declare(None, gguf="attention.clamp_kqv")

    @property
    def norm(self) -> Norm:
        return Norm(eps=self.layer_norm_eps, centred=True, gain=False)


def architecture(config: OlmoConfig) -> Architecture:
    attention = blocks.attention(
        config.attention_params(qkv_clip=config.clip_qkv or 0.0),
        config.rope,
        biases=blocks.BIASES if config.attention_bias else (),
        gguf_permuted=True,
    )
    layer = pre_norm_layer(config, attention, blocks.mlp(config.intermediate_size, config.hidden_act))
    return decoder(config, (layer,) * config.num_hidden_layers)


FAMILY = Family(OlmoConfig, architecture)
