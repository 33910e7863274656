"""Gemma 2: norms before and after each block, softcaps on scores and logits, a window in every other layer.

Gemma Team 2024, arXiv:2408.00118. Reference: transformers' modeling_gemma2.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from treadle.models import blocks
from treadle.models.blocks import ACTIVATIONS
from treadle.models.config import Keys, convert, declare
from treadle.models.decoder import decoder, sandwich_norm_layer
from treadle.models.families.gemma import BaseGemmaConfig
from treadle.models.registry import Family
from treadle.models.spec import Architecture, Op
from treadle.models.windows import every_nth_full
from treadle.plan.ir import Container
from treadle.plan.params import Activation

LAYERS_OF_27B = 46


def query_scalar(layers_of_27b: int) -> Any:
    """A reader of query_pre_attn_scalar. GGUF has no key for it: llama.cpp takes the width of a head, and for the
    27B model, which it knows by its number of layers, hidden_size / num_attention_heads."""

    def read(keys: Keys, values: Mapping[str, Any]) -> float:
        if keys.container is not Container.GGUF:
            found = keys.take("query_pre_attn_scalar")
            return float(convert(keys, "query_pre_attn_scalar", 256 if found is None else found, float))
        if values["num_hidden_layers"] == layers_of_27b:
            return float(values["hidden_size"] // values["num_attention_heads"])
        return float(values["head_dim"])

    return read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma2Config(BaseGemmaConfig):
    MODEL_TYPE: ClassVar[str] = "gemma2"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Gemma2ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "gemma2"
    ONLY: ClassVar[dict[str, object]] = {"hidden_act": "gelu_pytorch_tanh"}

    hidden_act: Activation = declare(Activation.GELU_TANH, hf="hidden_activation", choices=ACTIVATIONS)
    query_pre_attn_scalar: float = declare(reader=query_scalar(LAYERS_OF_27B))
    attn_logit_softcapping: float | None = declare(50.0, gguf="attn_logit_softcapping")
    final_logit_softcapping: float | None = declare(30.0, gguf="final_logit_softcapping")
    windows: tuple[int, ...] = declare(reader=every_nth_full(2, 4096))


def architecture(config: Gemma2Config) -> Architecture:
    biases = blocks.BIASES if config.attention_bias else ()
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act)

    def layer(window: int) -> tuple[Op, ...]:
        params = config.attention_params(
            window, scale=config.query_pre_attn_scalar**-0.5, softcap=config.attn_logit_softcapping or 0.0
        )
        return sandwich_norm_layer(config, blocks.attention(params, config.rope, biases), mlp)

    return decoder(
        config,
        tuple(layer(window) for window in config.windows),
        embedding_scale=config.embedding_scale,
        logit_softcap=config.final_logit_softcapping or 0.0,
    )


FAMILY = Family(Gemma2Config, architecture)
