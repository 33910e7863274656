"""StableLM: LayerNorms, a quarter of each head rotated; attention and MLP one after the other or beside each other.

Bellagente et al. 2024, arXiv:2402.17834. Reference: transformers' modeling_stablelm.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import msgspec

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.decoder import LayerNormDecoderConfig, decoder, parallel_layer, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.rope import Rope, partial_rope
from treadle.models.spec import LAYER, Architecture, Names, Op, WeightSpec
from treadle.plan.ir import Transform, TransformKind
from treadle.plan.params import QKNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableLmConfig(LayerNormDecoderConfig):
    MODEL_TYPE: ClassVar[str] = "stablelm"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("StableLmForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "stablelm"

    num_key_value_heads: int = declare(gguf="attention.head_count_kv", bounds=(1, 4096))
    rope: Rope = declare(reader=partial_rope(0.25))
    use_qkv_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")
    qk_layernorm: bool = declare(False, gguf_tensor="blk.0.attn_q_norm.weight")
    use_parallel_residual: bool = declare(False, gguf="use_parallel_residual")


def head_gains(slot: str, heads: int, head_dim: int) -> WeightSpec:
    """The gains of all heads of q or k in a row: Hugging Face has a tensor a head, GGUF one [heads, head_dim]."""
    hf = tuple(f"model.layers.{LAYER}.self_attn.{slot[0]}_layernorm.norms.{head}.weight" for head in range(heads))
    return WeightSpec(
        f"layers.{LAYER}.attention.{slot}",
        Names(hf, (Transform(TransformKind.CONCAT_ROWS, ()),)),
        Names((f"blk.{LAYER}.attn_{slot}.weight",), (Transform(TransformKind.RESHAPE, (heads * head_dim,)),)),
    )


def attention_of(config: StableLmConfig, writes: str) -> Op:
    biases = blocks.QKV_BIASES if config.use_qkv_bias else ()
    if not config.qk_layernorm:
        return blocks.attention(config.attention_params(), config.rope, biases, writes=writes)
    params = config.attention_params(qk_norm=QKNorm.LAYERNORM_PER_HEAD, qk_norm_eps=config.layer_norm_eps)
    op = blocks.attention(params, config.rope, biases, writes=writes)
    gains = {
        "q_norm": head_gains("q_norm", config.num_attention_heads, config.head_dim),
        "k_norm": head_gains("k_norm", config.num_key_value_heads, config.head_dim),
    }
    return msgspec.structs.replace(op, weights={**op.weights, **gains})


def architecture(config: StableLmConfig) -> Architecture:
    beside = config.use_parallel_residual
    attention = attention_of(config, "a" if beside else "h")
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, writes="m" if beside else "h")
    layer = (parallel_layer if beside else pre_norm_layer)(config, attention, mlp)
    return decoder(config, (layer,) * config.num_hidden_layers)


FAMILY = Family(StableLmConfig, architecture)
