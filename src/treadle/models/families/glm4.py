"""GLM-4 of 2025 (0414): GLM's attention and MLP between norms on both sides.

GLM Team 2024, arXiv:2406.12793. Reference: transformers' modeling_glm4.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final

from treadle.models.decoder import decoder, sandwich_norm_layer
from treadle.models.families.glm import BaseGlmConfig, attention_and_mlp
from treadle.models.registry import Family
from treadle.models.spec import Architecture

NORMS: Final = ("post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glm4Config(BaseGlmConfig):
    MODEL_TYPE: ClassVar[str] = "glm4"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Glm4ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "glm4"


def architecture(config: Glm4Config) -> Architecture:
    layer = sandwich_norm_layer(config, *attention_and_mlp(config), hf=NORMS)
    return decoder(config, (layer,) * config.num_hidden_layers)


FAMILY = Family(Glm4Config, architecture)
