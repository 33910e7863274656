"""Granite 3 MoE: Granite's layout with experts in place of the MLP.

IBM Granite Team 2024 (Granite 3.0 Language Models); Shen et al. 2024, arXiv:2408.13359, for the multipliers.
Reference: transformers' modeling_granitemoe.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import experts
from treadle.models.blocks import HF_LAYER
from treadle.models.experts import ExpertsConfig
from treadle.models.families.granite import MultipliedConfig, multiplied
from treadle.models.registry import Family
from treadle.models.spec import Architecture
from treadle.plan.params import RouterScore


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteMoeConfig(MultipliedConfig, ExpertsConfig):
    MODEL_TYPE: ClassVar[str] = "granitemoe"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("GraniteMoeForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "granitemoe"


def architecture(config: GraniteMoeConfig) -> Architecture:
    prefix = HF_LAYER + "block_sparse_moe."
    moe = experts.moe(
        config.moe_params(config.intermediate_size, router_score=RouterScore.TOPK_THEN_SOFTMAX),
        experts.whole(prefix, router="router.layer.weight")
        | experts.fused(prefix, config.intermediate_size, "input_linear.weight", "output_linear.weight"),
        config.hidden_size,
    )
    return multiplied(config, [moe] * config.num_hidden_layers)


FAMILY = Family(GraniteMoeConfig, architecture)
