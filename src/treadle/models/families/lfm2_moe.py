"""LFM2 with experts behind its first layers: sigmoid scores that a learnt bias corrects when experts are chosen.

Liquid AI 2025, arXiv:2511.23404. Reference: transformers' modeling_lfm2_moe.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from treadle.models import blocks, experts
from treadle.models.config import Keys, convert, declare
from treadle.models.experts import MAX_EXPERTS
from treadle.models.families.lfm2 import Lfm2Config, lfm2, mlp_of
from treadle.models.registry import Family
from treadle.models.spec import Architecture, Op
from treadle.plan.ir import Container
from treadle.plan.params import Activation, MoEParams, RouterScore

NORM_EPS: Final = 1e-6
SIGMOID: Final = 2
"""llama.cpp's number of the gating function."""
PARTS: Final = {
    "gate": "experts.{expert}.w1.weight",
    "up": "experts.{expert}.w3.weight",
    "down": "experts.{expert}.w2.weight",
}


def read_corrected(keys: Keys, values: Mapping[str, Any]) -> bool:
    if keys.container is not Container.GGUF:
        found = keys.take("use_expert_bias")
        return bool(convert(keys, "use_expert_bias", True if found is None else found, bool))
    if keys.take("expert_gating_func") not in (None, SIGMOID):
        keys.refuse("expert_gating_func", keys.take("expert_gating_func"), str(SIGMOID))
    return any(name.endswith(".exp_probs_b.bias") for name in keys.tensors)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lfm2MoeConfig(Lfm2Config):
    MODEL_TYPE: ClassVar[str] = "lfm2_moe"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Lfm2MoeForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "lfm2moe"
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    ONLY: ClassVar[Mapping[str, object]] = {}

    intermediate_size: int = declare(7168, gguf="feed_forward_length")
    moe_intermediate_size: int = declare(1792, gguf="expert_feed_forward_length")
    num_dense_layers: int = declare(2, gguf="leading_dense_block_count", bounds=(0, 1024))
    num_experts: int = declare(reader=experts.num_experts_or(32))
    num_experts_per_tok: int = declare(4, gguf="expert_used_count", bounds=(1, MAX_EXPERTS))
    corrected: bool = declare(reader=read_corrected)
    norm_topk_prob: bool = declare(True, gguf="expert_weights_norm")
    routed_scaling_factor: float = declare(1.0, gguf="expert_weights_scale")

    def check(self, keys: Keys) -> None:
        super().check(keys)
        experts.check_chosen(keys, self.num_experts_per_tok, self.num_experts)


def moe(config: Lfm2MoeConfig) -> Op:
    params = MoEParams(
        config.num_experts,
        config.num_experts_per_tok,
        config.moe_intermediate_size,
        activation=Activation.SILU,
        router_score=RouterScore.SIGMOID,
        normalise=int(config.norm_topk_prob),
        normalise_eps=NORM_EPS,
        routed_scale=config.routed_scaling_factor,
    )
    prefix = blocks.HF_LAYER + "feed_forward."
    names = experts.whole(prefix, router="gate.weight")
    if config.corrected:
        names |= experts.whole(prefix, score_correction="expert_bias")
    return experts.moe(params, names | experts.apart(prefix, config.num_experts, **PARTS), config.hidden_size)


def architecture(config: Lfm2MoeConfig) -> Architecture:
    dense = min(config.num_dense_layers, config.num_hidden_layers)
    return lfm2(config, (mlp_of(config),) * dense + (moe(config),) * (config.num_hidden_layers - dense))


FAMILY = Family(Lfm2MoeConfig, architecture)
