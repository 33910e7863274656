"""OLMo 2: RMS norms after each block instead of before it, and over the whole of q and of k.

OLMo Team 2025, arXiv:2501.00656. Reference: transformers' modeling_olmo2.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.decoder import DecoderConfig, decoder, post_norm_layer
from treadle.models.registry import Family
from treadle.models.spec import Architecture
from treadle.plan.params import QKNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Olmo2Config(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "olmo2"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Olmo2ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "olmo2"

    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")


def architecture(config: Olmo2Config) -> Architecture:
    params = config.attention_params(qk_norm=QKNorm.RMS_WHOLE, qk_norm_eps=config.rms_norm_eps)
    attention = blocks.attention(params, config.rope, blocks.BIASES if config.attention_bias else (), reads="x")
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, reads="x")
    return decoder(config, (post_norm_layer(config, attention, mlp),) * config.num_hidden_layers)


FAMILY = Family(Olmo2Config, architecture)
