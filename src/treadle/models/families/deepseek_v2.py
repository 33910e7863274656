"""DeepSeek-V2 and V2-Lite: latent attention, and experts behind the first layers.

DeepSeek-AI 2024, arXiv:2405.04434. Reference: transformers' modeling_deepseek_v2.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from treadle.models.config import Keys, declare
from treadle.models.deepseek import DeepseekConfig, deepseek, read_groups
from treadle.models.experts import MAX_EXPERTS
from treadle.models.registry import Family
from treadle.plan.ir import Container


def _n_group(keys: Keys, values: Mapping[str, Any]) -> int:
    """Groups count where topk_method says so."""
    if keys.container is Container.SAFETENSORS:
        method = keys.take("topk_method") or "greedy"
        if method not in ("greedy", "group_limited_greedy"):
            keys.refuse("topk_method", method, "greedy, group_limited_greedy")
        if method == "greedy":
            keys.take("n_group")
            return 1
    return read_groups(keys, "n_group", 1)


def _topk_group(keys: Keys, values: Mapping[str, Any]) -> int:
    found = read_groups(keys, "topk_group", 1)
    return found if values["n_group"] > 1 else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepseekV2Config(DeepseekConfig):
    MODEL_TYPE: ClassVar[str] = "deepseek_v2"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("DeepseekV2ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "deepseek2"
    ONLY: ClassVar[Mapping[str, object]] = {**DeepseekConfig.ONLY, "scoring_func": "softmax"}

    n_routed_experts: int = declare(64, gguf="expert_count", bounds=(1, MAX_EXPERTS))
    n_shared_experts: int = declare(2, gguf="expert_shared_count", bounds=(1, MAX_EXPERTS))
    moe_intermediate_size: int = declare(1407, gguf="expert_feed_forward_length")
    n_group: int = declare(reader=_n_group)
    topk_group: int = declare(reader=_topk_group)

    def check(self, keys: Keys) -> None:
        super().check(keys)
        if keys.container is Container.SAFETENSORS and self.norm_topk_prob:
            keys.refuse("norm_topk_prob", True, "false")


FAMILY = Family(DeepseekV2Config, deepseek)
