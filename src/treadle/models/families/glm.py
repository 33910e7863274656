"""GLM-4 of 2024 (9B, edge): half of each head rotated in neighbouring pairs, biases of q, k and v, gate and up fused.

GLM Team 2024, arXiv:2406.12793. Reference: transformers' modeling_glm.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.decoder import DecoderConfig, decoder, head_dim_or, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.rope import Rope, partial_rope
from treadle.models.spec import Architecture, Op
from treadle.plan.params import RopeStyle

GATE_UP: Final = ("gate_up_proj.weight", "ffn_up.weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseGlmConfig(DecoderConfig):
    num_key_value_heads: int = declare(gguf="attention.head_count_kv", bounds=(1, 4096))
    head_dim: int = declare(reader=head_dim_or(128))
    rope: Rope = declare(reader=partial_rope(0.5))
    attention_bias: bool = declare(True, gguf_tensor="blk.0.attn_q.bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlmConfig(BaseGlmConfig):
    MODEL_TYPE: ClassVar[str] = "glm"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("GlmForCausalLM",)


def attention_and_mlp(config: BaseGlmConfig) -> tuple[Op, Op]:
    params = config.attention_params(rope_style=RopeStyle.INTERLEAVED)
    attention = blocks.attention(params, config.rope, blocks.QKV_BIASES * config.attention_bias)
    cuts = blocks.fused_gate_up(config.intermediate_size)
    names = {**blocks.MLP, "gate": GATE_UP, "up": GATE_UP}
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, names=names, gguf_transforms=cuts, hf_transforms=cuts)
    return attention, mlp


def architecture(config: GlmConfig) -> Architecture:
    layer = pre_norm_layer(config, *attention_and_mlp(config))
    return decoder(config, (layer,) * config.num_hidden_layers)


FAMILY = Family(GlmConfig, architecture)
