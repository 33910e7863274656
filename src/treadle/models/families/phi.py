"""Phi-1, 1.5 and 2: attention and a plain MLP beside each other after one LayerNorm, part of each head rotated.

Li et al. 2023, arXiv:2309.05463. Reference: transformers' modeling_phi.py. GGUF files say "phi2".
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.decoder import LayerNormDecoderConfig, decoder, parallel_layer
from treadle.models.registry import Family
from treadle.models.rope import Rope, partial_rope
from treadle.models.spec import Architecture
from treadle.plan.params import Activation

ATTENTION: Final = {
    **blocks.ATTENTION,
    "o": ("dense.weight", "attn_output.weight"),
    "o_bias": ("dense.bias", "attn_output.bias"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhiConfig(LayerNormDecoderConfig):
    MODEL_TYPE: ClassVar[str] = "phi"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("PhiForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "phi2"
    ONLY: ClassVar[dict[str, object]] = {"qk_layernorm": False}

    hidden_act: Activation = declare(Activation.GELU_TANH, choices=blocks.ACTIVATIONS)
    rope: Rope = declare(reader=partial_rope(0.5))


def architecture(config: PhiConfig) -> Architecture:
    attention = blocks.attention(config.attention_params(), config.rope, blocks.BIASES, names=ATTENTION, writes="a")
    mlp = blocks.mlp(
        config.intermediate_size, config.hidden_act, bias=True, gated=False, names=blocks.PLAIN_MLP, writes="m"
    )
    layer = parallel_layer(config, attention, mlp)
    return decoder(config, (layer,) * config.num_hidden_layers, head_bias=True, final_norm="model.final_layernorm")


FAMILY = Family(PhiConfig, architecture)
