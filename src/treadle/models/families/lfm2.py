"""LFM2: gated short convolutions, with grouped-query attention in some layers.

Liquid AI 2025, arXiv:2511.23404. Reference: transformers' modeling_lfm2.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from treadle.models import blocks, mixers
from treadle.models.blocks import Norm
from treadle.models.config import Keys, convert, declare
from treadle.models.decoder import BaseDecoderConfig, decoder
from treadle.models.hybrid import Attends, attends, by_layer_types, has, read_kv_heads
from treadle.models.registry import Family
from treadle.models.rope import Rope, rope_from
from treadle.models.spec import Architecture, Op
from treadle.plan.ir import Container
from treadle.plan.params import Activation, QKNorm

ATTENTION = {
    **blocks.ATTENTION,
    "o": ("out_proj.weight", "attn_output.weight"),
    "q_norm": ("q_layernorm.weight", "attn_q_norm.weight"),
    "k_norm": ("k_layernorm.weight", "attn_k_norm.weight"),
}
MLP = {
    "gate": ("w1.weight", "ffn_gate.weight"),
    "up": ("w3.weight", "ffn_up.weight"),
    "down": ("w2.weight", "ffn_down.weight"),
}
KINDS = {"full_attention": True, "conv": False}
SAME = {
    "block_dim": "hidden_size",
    "conv_dim": "hidden_size",
    "conv_dim_out": "hidden_size",
    "num_heads": "num_attention_heads",
}
"""Keys of older configs that must say what another field says."""


def read_intermediate(keys: Keys, values: Mapping[str, Any]) -> int:
    """In config.json two thirds of the stated size, times a factor, up to whole units, unless told not to."""
    if keys.container is Container.GGUF:
        return int(convert(keys, "feed_forward_length", keys.take("feed_forward_length"), int))

    def stated(key: str, default: Any, hint: type = int) -> Any:
        found = keys.take(key)
        return convert(keys, key, default if found is None else found, hint)

    older = keys.take("block_ff_dim")
    size = int(stated("intermediate_size", 12288) if older is None else convert(keys, "block_ff_dim", older, int))
    unit, factor = stated("block_multiple_of", 256), keys.take("block_ffn_dim_multiplier")
    if not stated("block_auto_adjust_ff_dim", True, bool):
        return size
    size = int(2 * size / 3)
    if factor is None and "block_ffn_dim_multiplier" in keys:
        return size
    factor = 1.0 if factor is None else convert(keys, "block_ffn_dim_multiplier", factor, float)
    return int(unit * -(-int(factor * size) // unit))


def read_tied(keys: Keys, values: Mapping[str, Any]) -> bool:
    if keys.container is Container.GGUF:
        return "output.weight" not in keys.tensors
    older, found = keys.take("tie_embedding"), keys.take("tie_word_embeddings")
    key, stated = ("tie_word_embeddings", found) if older is None else ("tie_embedding", older)
    return bool(convert(keys, key, True if stated is None else stated, bool))


def by_indices(keys: Keys, layers: int) -> Attends:
    found = keys.take("full_attn_idxs")
    if found is None:
        return (True,) * layers
    if not isinstance(found, list) or any(type(i) is not int or not 0 <= i < layers for i in found):
        keys.refuse("full_attn_idxs", found, f"numbers of layers below {layers}")
    return tuple(layer in found for layer in range(layers))


def read_attends(keys: Keys, values: Mapping[str, Any]) -> Attends:
    """Which layers attend. What older configs say of it, and of other fields once more, must be the same."""
    found = attends(by_layer_types(KINDS, by_indices))(keys, values)
    if keys.container is Container.GGUF:
        return found
    known = {"full_attn_idxs": [layer for layer, attending in enumerate(found) if attending]}
    known |= {older: values[field] for older, field in SAME.items()}
    for key, value in known.items():
        if keys.take(key) not in (None, value):
            keys.refuse(key, keys.take(key), f"{value}, as other keys say")
    if keys.take("block_norm_eps") is not None and keys.number("block_norm_eps") != values["norm_eps"]:
        keys.refuse("block_norm_eps", keys.take("block_norm_eps"), f"{values['norm_eps']}, as norm_eps")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lfm2Config(BaseDecoderConfig):
    MODEL_TYPE: ClassVar[str] = "lfm2"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Lfm2ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "lfm2"
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init", "conv_use_xavier_init"}
    )
    ONLY: ClassVar[Mapping[str, object]] = {"block_use_swiglu": True, "use_pos_enc": True}

    intermediate_size: int = declare(reader=read_intermediate)
    num_key_value_heads: int = declare(reader=read_kv_heads)
    tie_word_embeddings: bool = declare(reader=read_tied)
    norm_eps: float = declare(1e-5, gguf="attention.layer_norm_rms_epsilon", bounds=(0.0, 1.0))
    rope: Rope | None = declare(reader=rope_from(1e6))
    conv_bias: bool = declare(reader=has("conv_bias", False, "shortconv.conv.bias"))
    conv_width: int = declare(3, hf="conv_L_cache", gguf="shortconv.l_cache", bounds=(1, 64))
    attends: tuple[bool, ...] = declare(reader=read_attends)

    @property
    def norm(self) -> Norm:
        return Norm(eps=self.norm_eps)


def mlp_of(config: Lfm2Config) -> Op:
    return blocks.mlp(config.intermediate_size, Activation.SILU, names=MLP, hf=blocks.HF_LAYER + "feed_forward.")


def lfm2(config: Lfm2Config, feed_forward: tuple[Op, ...]) -> Architecture:
    """`feed_forward`: each layer's."""
    params = config.attention_params(qk_norm=QKNorm.RMS_PER_HEAD, qk_norm_eps=config.norm_eps)
    attention = blocks.attention(params, config.rope, names=ATTENTION)
    conv = mixers.shortconv(config.hidden_size, config.conv_width, config.conv_bias, blocks.HF_LAYER + "conv.")

    def layer(attends: bool, mlp: Op) -> tuple[Op, ...]:
        return (
            config.norm.of_layer("mixer_norm", "operator_norm", "attn_norm"),
            attention if attends else conv,
            blocks.residual(),
            config.norm.of_layer("mlp_norm", "ffn_norm", "ffn_norm"),
            mlp,
            blocks.residual(),
        )

    return decoder(
        config,
        tuple(layer(*of_layer) for of_layer in zip(config.attends, feed_forward, strict=True)),
        final_norm="model.embedding_norm",
        gguf_final_norm="token_embd_norm",
    )


def architecture(config: Lfm2Config) -> Architecture:
    return lfm2(config, (mlp_of(config),) * config.num_hidden_layers)


FAMILY = Family(Lfm2Config, architecture)
