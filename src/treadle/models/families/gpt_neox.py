"""GPT-NeoX and Pythia: attention and a plain MLP beside each other, each after a LayerNorm of its own.

Black et al. 2022, arXiv:2204.06745. Reference: transformers' modeling_gpt_neox.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from treadle.models import blocks
from treadle.models.config import Keys, declare
from treadle.models.decoder import GGUF_TABLE, LayerNormDecoderConfig, decoder
from treadle.models.registry import Family
from treadle.models.rope import Rope, partial_rope
from treadle.models.spec import Architecture, Op, weight
from treadle.plan.ir import Container, Transform, TransformKind
from treadle.plan.params import Activation

HF_LAYER: Final = "gpt_neox.layers.{layer}."
ATTENTION: Final = blocks.fused_attention_names("query_key_value", "dense")
MLP: Final = blocks.plain_mlp_names("dense_h_to_4h", "dense_4h_to_h")
CALLED: Final = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
"""What the family calls a rope's theta and share where they stand beside its parameters."""


def read_rope(keys: Keys, values: Mapping[str, Any]) -> Rope:
    if keys.container is Container.GGUF:
        return partial_rope(0.25)(keys, values)
    names = {**CALLED, "rope_parameters": "rope_parameters", "rope_scaling": "rope_scaling"}
    beside = Keys(keys.container, {name: keys.take(called) for name, called in names.items()}, keys.where, {})
    beside.called.update(CALLED)
    return partial_rope(0.25)(beside, values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTNeoXConfig(LayerNormDecoderConfig):
    MODEL_TYPE: ClassVar[str] = "gpt_neox"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("GPTNeoXForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "gptneox"
    IGNORED: ClassVar[frozenset[str]] = frozenset({"classifier_dropout"})

    num_key_value_heads: int = declare(
        lambda values: values["num_attention_heads"], hf=None, gguf="attention.head_count_kv", bounds=(1, 4096)
    )
    hidden_act: Activation = declare(Activation.GELU, choices=blocks.ACTIVATIONS)
    rope: Rope = declare(reader=read_rope)
    attention_bias: bool = declare(True, gguf_tensor="blk.0.attn_qkv.bias")
    use_parallel_residual: bool = declare(True, gguf="use_parallel_residual")


def fused_by_head(heads: int, head_dim: int) -> dict[str, tuple[Transform, ...]]:
    """q, k and v cut out of a tensor that keeps the three of each head below one another."""
    return {
        slot + suffix: (Transform(TransformKind.SLICE_HEAD_ROWS, (heads, i * head_dim, (i + 1) * head_dim)),)
        for i, slot in enumerate(("q", "k", "v"))
        for suffix in ("", "_bias")
    }


def architecture(config: GPTNeoXConfig) -> Architecture:
    params = config.attention_params()
    attention = blocks.attention(
        params,
        config.rope,
        blocks.BIASES if config.attention_bias else (),
        names=ATTENTION,
        hf=HF_LAYER + "attention.",
        gguf_transforms=blocks.fused_qkv(params),
        hf_transforms=fused_by_head(config.num_attention_heads, config.head_dim),
        writes="a",
    )
    mlp = blocks.mlp(
        config.intermediate_size,
        config.hidden_act,
        bias=True,
        gated=False,
        names=MLP,
        hf=HF_LAYER + "mlp.",
        writes="m",
    )
    attention_norm = config.norm.of_layer("attention_norm", "input_layernorm", "attn_norm", hf_layer=HF_LAYER)
    mlp_norm = config.norm.of_layer("mlp_norm", "post_attention_layernorm", "ffn_norm", hf_layer=HF_LAYER)
    serial: tuple[Op, ...] = (attention_norm, attention, blocks.residual("a"), mlp_norm, mlp, blocks.residual("m"))
    beside: tuple[Op, ...] = (attention_norm, attention, mlp_norm, mlp, blocks.residual("a"), blocks.residual("m"))
    return decoder(
        config,
        (beside if config.use_parallel_residual else serial,) * config.num_hidden_layers,
        table=weight("embedding.table", "gpt_neox.embed_in.weight", GGUF_TABLE),
        final_norm="gpt_neox.final_layer_norm",
        hf_head="embed_out.weight",
        unused=("*.attention.bias", "*.attention.masked_bias"),
    )


FAMILY = Family(GPTNeoXConfig, architecture)
