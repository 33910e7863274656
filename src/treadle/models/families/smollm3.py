"""SmolLM3: Llama's layout in which every fourth layer rotates nothing.

Bakouch et al. 2025, huggingface.co/blog/smollm3; layers without positions: Yang et al. 2025, arXiv:2501.18795.
Reference: transformers' modeling_smollm3.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from treadle.models import blocks
from treadle.models.config import Keys, convert, declare
from treadle.models.decoder import GGUF_HEAD, DecoderConfig, decoder, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.rope import Rope, theta_or
from treadle.models.spec import Architecture, Op
from treadle.models.windows import no_windows
from treadle.plan.ir import Container


def read_turns(keys: Keys, values: Mapping[str, Any]) -> tuple[bool, ...]:
    """no_rope_layers, 1 for each layer that rotates; or all but every no_rope_layer_interval-th, in GGUF the fourth."""
    layers, gguf = int(values["num_hidden_layers"]), keys.container is Container.GGUF
    stated, every = (None, None) if gguf else (keys.take("no_rope_layers"), keys.take("no_rope_layer_interval"))
    nth = int(convert(keys, "no_rope_layer_interval", 4 if every is None else every, int))
    if stated is None:
        return tuple((layer + 1) % nth != 0 for layer in range(layers))
    known = isinstance(stated, list) and all(type(turns) is int and turns in (0, 1) for turns in stated)
    if not known or len(stated) < layers:
        keys.refuse("no_rope_layers", stated, f"{layers} of 0, 1")
    return tuple(bool(turns) for turns in stated[:layers])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmolLM3Config(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "smollm3"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("SmolLM3ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "smollm3"
    ONLY: ClassVar[Mapping[str, object]] = {"use_sliding_window": False, "sliding_window": None}

    num_key_value_heads: int = declare(gguf="attention.head_count_kv", bounds=(1, 4096))
    tie_word_embeddings: bool = declare(True, gguf_tensor=f"!{GGUF_HEAD}")
    rope: Rope = declare(reader=theta_or(2e6))
    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_q.bias")
    mlp_bias: bool = declare(False, gguf_tensor="blk.0.ffn_up.bias")
    turns: tuple[bool, ...] = declare(reader=read_turns)
    windows: tuple[int, ...] = declare(reader=no_windows)


def architecture(config: SmolLM3Config) -> Architecture:
    biases = blocks.BIASES if config.attention_bias else ()
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, config.mlp_bias)

    def layer(turns: bool) -> tuple[Op, ...]:
        params, rope = config.attention_params(rotates=turns), config.rope if turns else None
        attention = blocks.attention(params, rope, biases, gguf_permuted=True)
        return pre_norm_layer(config, attention, mlp)

    return decoder(config, tuple(layer(turns) for turns in config.turns))


FAMILY = Family(SmolLM3Config, architecture)
