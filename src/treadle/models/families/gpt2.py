"""GPT-2: learned positions, LayerNorms, q, k, v in one tensor, matrices kept transposed in Hugging Face checkpoints.

Radford et al. 2019 (Language Models are Unsupervised Multitask Learners). Reference: transformers' modeling_gpt2.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from treadle.models import blocks
from treadle.models.config import Keys, convert, declare
from treadle.models.decoder import GGUF_HEAD, GGUF_TABLE, LayerNormDecoderConfig, decoder
from treadle.models.registry import Family
from treadle.models.rope import Rope
from treadle.models.spec import Architecture, Op, weight
from treadle.plan.ir import Container, Transform, TransformKind
from treadle.plan.params import Activation

HF_LAYER: Final = "transformer.h.{layer}."
TRANSPOSE: Final = (Transform(TransformKind.TRANSPOSE, ()),)
ATTENTION: Final = blocks.fused_attention_names("c_attn", "c_proj")
MLP: Final = blocks.plain_mlp_names("c_fc", "c_proj")


def read_inner(keys: Keys, values: Mapping[str, Any]) -> int:
    """n_inner, or four times the width."""
    key = "feed_forward_length" if keys.container is Container.GGUF else "n_inner"
    found = keys.take(key)
    return int(convert(keys, key, 4 * values["hidden_size"] if found is None else found, int))


def no_rope(keys: Keys, values: Mapping[str, Any]) -> None:
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config(LayerNormDecoderConfig):
    MODEL_TYPE: ClassVar[str] = "gpt2"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("GPT2LMHeadModel",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "gpt2"
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"n_ctx", "reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation"}
        | {"summary_proj_to_labels", "summary_first_dropout"}
    )

    hidden_size: int = declare(hf="n_embd", gguf="embedding_length")
    intermediate_size: int = declare(reader=read_inner)
    num_hidden_layers: int = declare(hf="n_layer", gguf="block_count", bounds=(1, 1024))
    num_attention_heads: int = declare(hf="n_head", gguf="attention.head_count", bounds=(1, 4096))
    num_key_value_heads: int = declare(
        lambda values: values["num_attention_heads"], hf=None, gguf="attention.head_count_kv", bounds=(1, 4096)
    )
    max_position_embeddings: int = declare(hf="n_positions", gguf="context_length", bounds=(1, 1 << 24))
    hidden_act: Activation = declare(Activation.GELU_TANH, hf="activation_function", choices=blocks.ACTIVATIONS)
    layer_norm_eps: float = declare(
        1e-5, hf="layer_norm_epsilon", gguf="attention.layer_norm_epsilon", bounds=(0.0, 1.0)
    )
    tie_word_embeddings: bool = declare(True, gguf_tensor=f"!{GGUF_HEAD}")
    rope: Rope | None = declare(reader=no_rope)
    scale_attn_weights: bool = declare(True)
    scale_attn_by_inverse_layer_idx: bool = declare(False)

    def score_scale(self, layer: int) -> float:
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return float(scale / (layer + 1 if self.scale_attn_by_inverse_layer_idx else 1))


def layer(config: GPT2Config, index: int) -> tuple[Op, ...]:
    params = config.attention_params(scale=config.score_scale(index))
    cuts = blocks.fused_qkv(params)
    turned = {slot: TRANSPOSE + cuts.get(slot, ()) for slot in blocks.PROJECTIONS}
    attention = blocks.attention(
        params,
        None,
        blocks.BIASES,
        names=ATTENTION,
        hf=HF_LAYER + "attn.",
        gguf_transforms=cuts,
        hf_transforms={**cuts, **turned},
    )
    mlp = blocks.mlp(
        config.intermediate_size,
        config.hidden_act,
        bias=True,
        gated=False,
        names=MLP,
        hf=HF_LAYER + "mlp.",
        hf_transforms={"up": TRANSPOSE, "down": TRANSPOSE},
    )
    norm = config.norm
    return (
        norm.of_layer("attention_norm", "ln_1", "attn_norm", hf_layer=HF_LAYER),
        attention,
        blocks.residual(),
        norm.of_layer("mlp_norm", "ln_2", "ffn_norm", hf_layer=HF_LAYER),
        mlp,
        blocks.residual(),
    )


def architecture(config: GPT2Config) -> Architecture:
    return decoder(
        config,
        tuple(layer(config, index) for index in range(config.num_hidden_layers)),
        table=weight("embedding.table", "transformer.wte.weight", GGUF_TABLE),
        positions=weight("embedding.positions", "transformer.wpe.weight", "position_embd.weight"),
        final_norm="transformer.ln_f",
        unused=("*.attn.bias", "*.attn.masked_bias"),
    )


FAMILY = Family(GPT2Config, architecture)
