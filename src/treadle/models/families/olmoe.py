"""OLMoE: RMS norms over the whole of q and of k, and many small experts.

Muennighoff et al. 2024, arXiv:2409.02060. Reference: transformers' modeling_olmoe.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from treadle.models import blocks, experts
from treadle.models.blocks import HF_LAYER
from treadle.models.config import Keys, declare
from treadle.models.decoder import decoder, pre_norm_layer
from treadle.models.experts import MAX_EXPERTS, ExpertsConfig
from treadle.models.registry import Family
from treadle.models.spec import Architecture
from treadle.plan.params import QKNorm


def no_clip(keys: Keys, values: Mapping[str, Any]) -> None:
    """The clip would be behind the norms of q and k, where the op has none."""
    for key in ("clip_qkv", "attention.clamp_kqv"):
        if keys.take(key) is not None:
            keys.refuse(key, keys.take(key), "null")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OlmoeConfig(ExpertsConfig):
    MODEL_TYPE: ClassVar[str] = "olmoe"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("OlmoeForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "olmoe"

    num_experts: int = declare(gguf="expert_count", reader=experts.num_experts_or(64))
    num_experts_per_tok: int = declare(8, gguf="expert_used_count", bounds=(1, MAX_EXPERTS))
    norm_topk_prob: bool = declare(False, gguf="expert_weights_norm")
    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")
    clip_qkv: None = declare(reader=no_clip)


def architecture(config: OlmoeConfig) -> Architecture:
    prefix = HF_LAYER + "mlp."
    params = config.attention_params(qk_norm=QKNorm.RMS_WHOLE, qk_norm_eps=config.rms_norm_eps)
    attention = blocks.attention(params, config.rope, blocks.BIASES if config.attention_bias else ())
    moe = experts.moe(
        config.moe_params(config.intermediate_size, normalise=int(config.norm_topk_prob)),
        experts.whole(prefix, router="gate.weight")
        | experts.apart(prefix, config.num_experts, **experts.projections("experts.{expert}.{part}_proj.weight")),
        config.hidden_size,
    )
    return decoder(config, (pre_norm_layer(config, attention, moe),) * config.num_hidden_layers)


FAMILY = Family(OlmoeConfig, architecture)
