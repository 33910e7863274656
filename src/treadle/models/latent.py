"""Multi-head latent attention: its block, and the config fields of decoders that have it.

DeepSeek-V2, arXiv:2405.04434, section 2.1. Reference: transformers' modeling_deepseek_v2.py, and
llama.cpp's deepseek2 for GGUF.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final

from treadle.models.blocks import GGUF_LAYER, HF_LAYER
from treadle.models.config import Keys, convert, declare, single
from treadle.models.decoder import DecoderConfig
from treadle.models.rope import Rope, read_rope
from treadle.models.spec import Names, Op, WeightSpec, weight
from treadle.plan.ir import Container, GeneratorKind, Transform, TransformKind
from treadle.plan.params import MLAParams, RopeStyle

LATENT_NORM_EPS: Final = 1e-6
"""Of the norms of the compressed queries, keys and values, whatever the model's own epsilon is."""
DIMS: Final = (1, 1 << 16)
OLD_GGUF: Final = "blk.0.attn_kv_b.weight"
"""Files converted before llama.cpp split this tensor in two."""

SLOTS: Final[Mapping[str, tuple[str, str]]] = {
    "q": ("q_proj.weight", "attn_q.weight"),
    "q_a": ("q_a_proj.weight", "attn_q_a.weight"),
    "q_a_bias": ("q_a_proj.bias", "attn_q_a.bias"),
    "q_a_norm": ("q_a_layernorm.weight", "attn_q_a_norm.weight"),
    "q_b": ("q_b_proj.weight", "attn_q_b.weight"),
    "kv_a": ("kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"),
    "kv_a_bias": ("kv_a_proj_with_mqa.bias", "attn_kv_a_mqa.bias"),
    "kv_a_norm": ("kv_a_layernorm.weight", "attn_kv_a_norm.weight"),
    "o": ("o_proj.weight", "attn_output.weight"),
    "o_bias": ("o_proj.bias", "attn_output.bias"),
}
"""Weight slot -> (name behind "model.layers.{layer}.self_attn.", name behind "blk.{layer}.")."""


def mla(params: MLAParams, rope: Rope, bias: bool) -> Op:
    """Latent attention over h. GGUF keeps each head's two parts of kv_b apart, the first one turned."""
    queries = ("q_a", "q_a_norm", "q_b") if params.q_lora_rank else ("q",)
    biases = (("q_a_bias",) if params.q_lora_rank else ()) + ("kv_a_bias", "o_bias") if bias else ()
    hf, name = HF_LAYER + "self_attn.", "layers.{layer}.attention."
    weights = {
        slot: weight(name + slot, hf + SLOTS[slot][0], GGUF_LAYER + SLOTS[slot][1])
        for slot in (*queries, "kv_a", "kv_a_norm", "o", *biases)
    }
    halves = (GGUF_LAYER + "attn_k_b.weight", GGUF_LAYER + "attn_v_b.weight")
    joined = Names(halves, (Transform(TransformKind.JOIN_TURNED_HEADS),))
    weights["kv_b"] = WeightSpec(name + "kv_b", Names((hf + "kv_b_proj.weight",)), joined)
    weights["rope_inv_freq"] = rope.weight()
    return Op(params, weights, ("h",), "h")


def _heads(keys: Keys, values: Mapping[str, Any]) -> int:
    """As many key/value heads as heads: the latent is what is shared. GGUF says 1."""
    heads = int(values["num_attention_heads"])
    gguf = keys.container is Container.GGUF
    key = "attention.head_count_kv" if gguf else "num_key_value_heads"
    if keys.take(key) not in (None, 1 if gguf else heads):
        keys.refuse(key, keys.take(key), "1" if gguf else f"{heads}, as num_attention_heads")
    return heads


def _attention_bias(keys: Keys, values: Mapping[str, Any]) -> bool:
    """llama.cpp knows none."""
    if keys.container is Container.GGUF or "attention_bias" not in keys:
        return False
    return bool(convert(keys, "attention_bias", keys.take("attention_bias"), bool))


def _rope_dim(keys: Keys, values: Mapping[str, Any]) -> int:
    """qk_rope_head_dim, which transformers also calls head_dim."""
    gguf = keys.container is Container.GGUF
    key = "rope.dimension_count" if gguf else "qk_rope_head_dim"
    found = keys.take(key)
    dim = int(convert(keys, key, 64 if found is None and not gguf else found, int, DIMS))
    if not gguf and keys.take("head_dim") not in (None, dim):
        keys.refuse("head_dim", keys.take("head_dim"), f"{dim}, as qk_rope_head_dim")
    return dim


def _q_lora_rank(keys: Keys, values: Mapping[str, Any]) -> int:
    """0: queries are not compressed. transformers' default counts where config.json does not have the key at all."""
    gguf = keys.container is Container.GGUF
    key = "attention.q_lora_rank" if gguf else "q_lora_rank"
    found = keys.take(key)
    if found is None:
        return 0 if gguf or key in keys else 1536
    return int(convert(keys, key, found, int, DIMS))


def _nope_dim(keys: Keys, values: Mapping[str, Any]) -> int:
    """Dims of a head's key that are not turned. GGUF states whole heads, and what one latent takes as key and value."""
    rope, latent = int(values["head_dim"]), int(values["kv_lora_rank"])
    if keys.container is Container.SAFETENSORS:
        found = keys.take("qk_nope_head_dim")
        nope = int(convert(keys, "qk_nope_head_dim", 128 if found is None else found, int, DIMS))
        if keys.take("qk_head_dim") not in (None, nope + rope):
            keys.refuse("qk_head_dim", keys.take("qk_head_dim"), f"{nope + rope}, nope and rope together")
        return nope
    if OLD_GGUF in keys.tensors:
        keys.refuse("attention.key_length_mla", None, "a file with attn_k_b and attn_v_b; convert the model again")
    for key, width in (("attention.key_length", latent + rope), ("attention.value_length", latent)):
        if keys.take(key) not in (None, width):
            keys.refuse(key, keys.take(key), str(width))
    key = "attention.key_length_mla"
    return int(convert(keys, key, keys.take(key), int, (rope + 1, DIMS[1]))) - rope


def _rope(keys: Keys, values: Mapping[str, Any]) -> Rope:
    """llama.cpp cancels YaRN's factor of cos and sin where the softmax scale has one."""
    rope = read_rope(keys, values)
    if keys.container is Container.GGUF and keys.take("rope.scaling.yarn_log_multiplier") is not None:
        return dataclasses.replace(rope, scale=1.0)
    return rope


def _scale_factor(keys: Keys, values: Mapping[str, Any]) -> float:
    """YaRN's magnitude 0.1 mscale_all_dim ln(factor) + 1, whose square multiplies the softmax scale; else 1."""
    rope: Rope = values["rope"]
    if keys.container is Container.GGUF:
        slope = keys.number("rope.scaling.yarn_log_multiplier", 0.0, (0.0, 1e3))
    else:
        parameters = keys.take("rope_parameters") or keys.take("rope_scaling") or {}
        inner = Keys(keys.container, parameters, f"{keys.where}: rope_parameters", {})
        slope = single(0.1 * inner.number("mscale_all_dim", 0.0, (0.0, 1e3)))
    if rope.kind is not GeneratorKind.ROPE_YARN or rope.args[1] <= 1:
        return 1.0
    return single(1 + slope * math.log(rope.args[1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConfig(DecoderConfig):
    """A decoder with latent attention; `head_dim` is that of the part that is turned."""

    num_key_value_heads: int = declare(reader=_heads)
    head_dim: int = declare(reader=_rope_dim)
    rope: Rope = declare(reader=_rope)
    rms_norm_eps: float = declare(1e-6, gguf="attention.layer_norm_rms_epsilon", bounds=(0.0, 1.0))
    attention_bias: bool = declare(reader=_attention_bias)
    q_lora_rank: int = declare(reader=_q_lora_rank)
    kv_lora_rank: int = declare(512, gguf="attention.kv_lora_rank", bounds=DIMS)
    qk_nope_head_dim: int = declare(reader=_nope_dim)
    v_head_dim: int = declare(128, gguf="attention.value_length_mla", bounds=DIMS)
    softmax_factor: float = declare(hf=None, reader=_scale_factor)

    def mla_params(self, rope_style: RopeStyle = RopeStyle.INTERLEAVED) -> MLAParams:
        return MLAParams(
            num_heads=self.num_attention_heads,
            q_lora_rank=self.q_lora_rank,
            kv_lora_rank=self.kv_lora_rank,
            nope_dim=self.qk_nope_head_dim,
            rope_dim=self.head_dim,
            v_head_dim=self.v_head_dim,
            scale=(self.qk_nope_head_dim + self.head_dim) ** -0.5 * self.softmax_factor**2,
            norm_eps=LATENT_NORM_EPS,
            rope_style=rope_style,
            rope_scale=self.rope.scale,
        )
