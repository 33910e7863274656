"""Helium: Llama's layout whose heads are rotated in neighbouring pairs; the output projection has no bias.

Kyutai 2025, kyutai.org/helium. Reference: transformers' modeling_helium.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks
from treadle.models.config import Keys, declare
from treadle.models.decoder import DecoderConfig, decoder, head_dim_or, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.rope import Rope, theta_or
from treadle.models.spec import Architecture
from treadle.plan.params import RopeStyle


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeliumConfig(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "helium"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("HeliumForCausalLM",)

    num_key_value_heads: int = declare(bounds=(1, 4096))
    head_dim: int = declare(reader=head_dim_or(128))
    rope: Rope = declare(reader=theta_or(1e5))
    attention_bias: bool = declare(False)
    mlp_bias: bool = declare(False)

    def check(self, keys: Keys) -> None:
        super().check(keys)
        if self.num_attention_heads * self.head_dim != self.hidden_size:
            keys.refuse("head_dim", self.head_dim, f"{self.hidden_size} / {self.num_attention_heads} heads")


def architecture(config: HeliumConfig) -> Architecture:
    params = config.attention_params(rope_style=RopeStyle.INTERLEAVED)
    attention = blocks.attention(params, config.rope, blocks.QKV_BIASES * config.attention_bias)
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, config.mlp_bias)
    return decoder(config, (pre_norm_layer(config, attention, mlp),) * config.num_hidden_layers)


FAMILY = Family(HeliumConfig, architecture)
