"""Qwen1.5-MoE and Qwen2-MoE: Qwen2's layout with experts, and a gated shared expert, in all layers or some.

Qwen Team 2024 (Qwen1.5-MoE); Yang et al. 2024, arXiv:2407.10671. Reference: transformers' modeling_qwen2_moe.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models import blocks, experts
from treadle.models.config import declare
from treadle.models.decoder import decoder, pre_norm_layer
from treadle.models.experts import MAX_EXPERTS, GatedSharedConfig
from treadle.models.registry import Family
from treadle.models.spec import Architecture, Op
from treadle.models.windows import even_layers_up_to


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(GatedSharedConfig):
    MODEL_TYPE: ClassVar[str] = "qwen2_moe"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Qwen2MoeForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "qwen2moe"

    num_experts: int = declare(gguf="expert_count", reader=experts.num_experts_or(60))
    num_experts_per_tok: int = declare(4, gguf="expert_used_count", bounds=(1, MAX_EXPERTS))
    moe_intermediate_size: int = declare(1408, gguf="expert_feed_forward_length")
    shared_expert_intermediate_size: int = declare(5632, gguf="expert_shared_feed_forward_length")
    norm_topk_prob: bool = declare(False, gguf="expert_weights_norm")
    qkv_bias: bool = declare(True, gguf_tensor="blk.0.attn_q.bias")
    sparse: tuple[bool, ...] = declare(reader=experts.sparse_layers)
    windows: tuple[int, ...] = declare(reader=even_layers_up_to)


def architecture(config: Qwen2MoeConfig) -> Architecture:
    moe = config.moe()
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act)

    def layer(window: int, sparse: bool) -> tuple[Op, ...]:
        biases = blocks.QKV_BIASES if config.qkv_bias else ()
        attention = blocks.attention(config.attention_params(window), config.rope, biases)
        return pre_norm_layer(config, attention, moe if sparse else mlp)

    return decoder(config, tuple(layer(*of_layer) for of_layer in zip(config.windows, config.sparse, strict=True)))


FAMILY = Family(Qwen2MoeConfig, architecture)
