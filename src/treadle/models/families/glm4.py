"""GLM-4 of 2025 (0414): GLM's attention and MLP between norms on both sides.

GLM Team 2024, arXiv:2406.12793. Reference: transformers' modeling_glm4.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks
from treadle.models.decoder import decoder
from treadle.models.families.glm import BaseGlmConfig, attention_and_mlp
from treadle.models.registry import Family
from treadle.models.spec import Architecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glm4Config(BaseGlmConfig):
    MODEL_TYPE: ClassVar[str] = "glm4"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Glm4ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "glm4"


def architecture(config: Glm4Config) -> Architecture:
    attention, mlp = attention_and_mlp(config)
    norm = config.norm
    layer = (
        norm.of_layer("attention_norm", "input_layernorm", "attn_norm"),
        attention,
        norm.of_layer("post_attention_norm", "post_self_attn_layernorm", "post_attention_norm", reads="h"),
        blocks.residual(),
        norm.of_layer("mlp_norm", "post_attention_layernorm", "ffn_norm"),
        mlp,
        norm.of_layer("post_mlp_norm", "post_mlp_layernorm", "post_ffw_norm", reads="h"),
        blocks.residual(),
    )
    return decoder(config, (layer,) * config.num_hidden_layers)


FAMILY = Family(Glm4Config, architecture)
