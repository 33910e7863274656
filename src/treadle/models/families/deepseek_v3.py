"""DeepSeek-V3 and R1: V2's layout, with sigmoid scores that a learnt bias corrects when experts are chosen.

DeepSeek-AI 2024, arXiv:2412.19437. Reference: transformers' modeling_deepseek_v3.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from treadle.models.config import declare
from treadle.models.deepseek import DeepseekConfig, deepseek, read_groups, scores, switch
from treadle.models.experts import MAX_EXPERTS
from treadle.models.registry import Family
from treadle.models.spec import Architecture
from treadle.plan.params import RopeStyle


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepseekV3Config(DeepseekConfig):
    MODEL_TYPE: ClassVar[str] = "deepseek_v3"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("DeepseekV3ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "deepseek2"
    ONLY: ClassVar[Mapping[str, object]] = {
        **DeepseekConfig.ONLY,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }
    IGNORED: ClassVar[frozenset[str]] = DeepseekConfig.IGNORED | {"num_nextn_predict_layers", "num_mtp_layers"}

    first_k_dense_replace: int = declare(3, gguf="leading_dense_block_count", bounds=(0, 1024))
    n_routed_experts: int = declare(256, gguf="expert_count", bounds=(1, MAX_EXPERTS))
    n_shared_experts: int = declare(1, gguf="expert_shared_count", bounds=(1, MAX_EXPERTS))
    num_experts_per_tok: int = declare(8, gguf="expert_used_count", bounds=(1, MAX_EXPERTS))
    moe_intermediate_size: int = declare(2048, gguf="expert_feed_forward_length")
    routed_scaling_factor: float = declare(2.5, gguf="expert_weights_scale")
    norm_topk_prob: bool = declare(reader=switch("norm_topk_prob", "expert_weights_norm", True))
    sigmoid: bool = declare(reader=scores(sigmoid=True))
    n_group: int = declare(reader=lambda keys, values: read_groups(keys, "n_group", 8))
    topk_group: int = declare(reader=lambda keys, values: read_groups(keys, "topk_group", 4))
    rope_interleave: bool = declare(reader=switch("rope_interleave", None, True))


def architecture(config: DeepseekV3Config) -> Architecture:
    return deepseek(config, RopeStyle.INTERLEAVED if config.rope_interleave else RopeStyle.HALF)


FAMILY = Family(DeepseekV3Config, architecture)
