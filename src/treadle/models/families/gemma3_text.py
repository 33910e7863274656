"""Gemma 3, text: RMS norms on the heads of q and k, five layers with a window and a rope of their own to one without.

Gemma Team 2025, arXiv:2503.19786. Reference: transformers' modeling_gemma3.py. GGUF files say "gemma3".
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks
from treadle.models.blocks import ACTIVATIONS
from treadle.models.config import declare
from treadle.models.decoder import decoder, sandwich_norm_layer
from treadle.models.families.gemma import BaseGemmaConfig
from treadle.models.families.gemma2 import query_scalar
from treadle.models.registry import Family
from treadle.models.rope import Rope, rope_of_kind
from treadle.models.spec import Architecture, Op
from treadle.models.windows import every_nth_full
from treadle.plan.params import Activation, QKNorm

LAYERS_OF_27B = 62


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3TextConfig(BaseGemmaConfig):
    MODEL_TYPE: ClassVar[str] = "gemma3_text"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Gemma3ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "gemma3"
    IGNORED: ClassVar[frozenset[str]] = frozenset({"_sliding_window_pattern"})
    ONLY: ClassVar[dict[str, object]] = {"hidden_act": "gelu_pytorch_tanh", "attn_logit_softcapping": None}

    hidden_act: Activation = declare(Activation.GELU_TANH, hf="hidden_activation", choices=ACTIVATIONS)
    query_pre_attn_scalar: float = declare(reader=query_scalar(LAYERS_OF_27B))
    final_logit_softcapping: float | None = declare(None, gguf="final_logit_softcapping")
    windows: tuple[int, ...] = declare(reader=every_nth_full(6, 4096))
    rope: Rope = declare(reader=rope_of_kind("full_attention", 1e6, "rope_theta", "rope.freq_base"))
    local_rope: Rope = declare(
        reader=rope_of_kind("sliding_attention", 1e4, "rope_local_base_freq", "rope.freq_base_swa")
    )


def architecture(config: Gemma3TextConfig) -> Architecture:
    biases = blocks.BIASES if config.attention_bias else ()
    gains = dict.fromkeys(blocks.QK_NORMS, config.norm.transforms())
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act)

    def layer(window: int) -> tuple[Op, ...]:
        rope, name = (config.local_rope, "local_rope.inv_freq") if window else (config.rope, "rope.inv_freq")
        params = config.attention_params(
            window,
            scale=config.query_pre_attn_scalar**-0.5,
            rotary_dim=rope.rotary_dim,
            rope_scale=rope.scale,
            qk_norm=QKNorm.RMS_PER_HEAD,
            qk_norm_eps=config.rms_norm_eps,
        )
        attention = blocks.attention(params, rope, biases, hf_transforms=gains, rope_name=name)
        return sandwich_norm_layer(config, attention, mlp)

    return decoder(
        config,
        tuple(layer(window) for window in config.windows),
        embedding_scale=config.embedding_scale,
        logit_softcap=config.final_logit_softcapping or 0.0,
    )


FAMILY = Family(Gemma3TextConfig, architecture)
