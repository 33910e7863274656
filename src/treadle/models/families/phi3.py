"""Phi-3, 3.5 and 4, dense: Llama's layout with q, k, v in one tensor and gate, up in another; LongRoPE's short factors.

Abdin et al. 2024, arXiv:2404.14219. Reference: transformers' modeling_phi3.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.decoder import DecoderConfig, decoder, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.rope import LONG_FACTORS_TENSOR, LONG_SCALINGS, SHORT_FACTORS_TENSOR, Rope, partial_rope
from treadle.models.spec import Architecture, Op
from treadle.models.windows import every_layer

QKV: Final = ("qkv_proj.weight", "attn_qkv.weight")
GATE_UP: Final = ("gate_up_proj.weight", "ffn_up.weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phi3Config(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "phi3"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Phi3ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "phi3"

    rope: Rope = declare(reader=partial_rope(1.0, LONG_SCALINGS, original=4096))
    windows: tuple[int, ...] = declare(reader=every_layer(None))


def architecture(config: Phi3Config) -> Architecture:
    mlp = blocks.mlp(
        config.intermediate_size,
        config.hidden_act,
        names={**blocks.MLP, "gate": GATE_UP, "up": GATE_UP},
        gguf_transforms=blocks.fused_gate_up(config.intermediate_size),
        hf_transforms=blocks.fused_gate_up(config.intermediate_size),
    )

    def layer(window: int) -> tuple[Op, ...]:
        params = config.attention_params(window)
        cuts = blocks.fused_qkv(params)
        names = {**blocks.ATTENTION, **dict.fromkeys(("q", "k", "v"), QKV)}
        attention = blocks.attention(params, config.rope, names=names, gguf_transforms=cuts, hf_transforms=cuts)
        return pre_norm_layer(config, attention, mlp)

    factors = (SHORT_FACTORS_TENSOR, LONG_FACTORS_TENSOR)
    return decoder(config, tuple(layer(window) for window in config.windows), unused=factors)


FAMILY = Family(Phi3Config, architecture)
