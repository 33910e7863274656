"""GLM-4.5 and 4.6: GLM's attention, whose heads are rotated in halves, before experts that are routed as DeepSeek-V3's.

GLM-4.5 Team 2025, arXiv:2508.06471. Reference: transformers' modeling_glm4_moe.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from treadle.models import blocks
from treadle.models.config import Keys, convert, declare
from treadle.models.deepseek import RoutedConfig, dense_then_sparse, scores, switch
from treadle.models.experts import MAX_EXPERTS
from treadle.models.registry import Family
from treadle.models.rope import Rope, partial_rope
from treadle.models.spec import Architecture
from treadle.plan.ir import Container
from treadle.plan.params import QKNorm

AHEAD: Final = "nextn_predict_layers"


def read_layers(keys: Keys, values: Mapping[str, Any]) -> int:
    """GGUF counts the layers that predict more than one token ahead too."""
    gguf = keys.container is Container.GGUF
    key = "block_count" if gguf else "num_hidden_layers"
    ahead = int(convert(keys, AHEAD, keys.take(AHEAD) or 0, int, (0, 1))) if gguf else 0
    return int(convert(keys, key, keys.take(key), int, (1 + ahead, 1024))) - ahead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glm4MoeConfig(RoutedConfig):
    MODEL_TYPE: ClassVar[str] = "glm4_moe"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Glm4MoeForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "glm4moe"
    IGNORED: ClassVar[frozenset[str]] = frozenset({"num_nextn_predict_layers", "num_mtp_layers"})

    num_hidden_layers: int = declare(reader=read_layers)
    num_key_value_heads: int = declare(gguf="attention.head_count_kv", bounds=(1, 4096))
    rope: Rope = declare(reader=partial_rope(0.5))
    first_k_dense_replace: int = declare(1, gguf="leading_dense_block_count", bounds=(0, 1024))
    n_routed_experts: int = declare(128, gguf="expert_count", bounds=(1, MAX_EXPERTS))
    n_shared_experts: int = declare(1, gguf="expert_shared_count", bounds=(1, MAX_EXPERTS))
    num_experts_per_tok: int = declare(8, gguf="expert_used_count", bounds=(1, MAX_EXPERTS))
    moe_intermediate_size: int = declare(1408, gguf="expert_feed_forward_length")
    norm_topk_prob: bool = declare(reader=switch("norm_topk_prob", "expert_weights_norm", True))
    sigmoid: bool = declare(reader=scores(sigmoid=True))
    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")
    use_qk_norm: bool = declare(False, gguf_tensor="blk.0.attn_q_norm.weight")


def architecture(config: Glm4MoeConfig) -> Architecture:
    params = config.attention_params()
    if config.use_qk_norm:
        params = config.attention_params(qk_norm=QKNorm.RMS_PER_HEAD, qk_norm_eps=config.rms_norm_eps)
    attention = blocks.attention(params, config.rope, blocks.QKV_BIASES * config.attention_bias)
    return dense_then_sparse(config, attention, gguf_mlp_norm="post_attention_norm")


FAMILY = Family(Glm4MoeConfig, architecture)
