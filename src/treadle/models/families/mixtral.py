"""Mixtral: Mistral's layout with eight experts in place of the MLP, of which each row takes two.

Jiang et al. 2024, arXiv:2401.04088. Reference: transformers' modeling_mixtral.py. GGUF files of it say "llama".
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks, experts
from treadle.models.blocks import HF_LAYER
from treadle.models.config import declare
from treadle.models.decoder import decoder, pre_norm_layer
from treadle.models.experts import ExpertsConfig
from treadle.models.registry import Family
from treadle.models.rope import Rope, theta_or
from treadle.models.spec import Architecture, Op
from treadle.models.windows import every_layer
from treadle.plan.params import MoEParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtralConfig(ExpertsConfig):
    MODEL_TYPE: ClassVar[str] = "mixtral"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("MixtralForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "llama"
    IGNORED: ClassVar[frozenset[str]] = frozenset({"router_jitter_noise"})  # of training

    rope: Rope = declare(reader=theta_or(1e6))
    windows: tuple[int, ...] = declare(reader=every_layer(None))


def mixture(params: MoEParams, hidden: int) -> Op:
    """Mixtral's experts and their names."""
    prefix = HF_LAYER + "block_sparse_moe."
    names = {slot: f"experts.{{expert}}.{name}.weight" for slot, name in (("gate", "w1"), ("up", "w3"), ("down", "w2"))}
    kept = experts.whole(prefix, router="gate.weight") | experts.apart(prefix, params.num_experts, **names)
    return experts.moe(params, kept, hidden)


def architecture(config: MixtralConfig) -> Architecture:
    moe = mixture(config.moe_params(config.intermediate_size, normalise=1), config.hidden_size)

    def layer(window: int) -> tuple[Op, ...]:
        attention = blocks.attention(config.attention_params(window), config.rope, gguf_permuted=True)
        return pre_norm_layer(config, attention, moe)

    return decoder(config, tuple(layer(window) for window in config.windows))


FAMILY = Family(MixtralConfig, architecture)
