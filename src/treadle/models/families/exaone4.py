"""EXAONE 4: norms after attention and MLP and on the heads of q and k; layers that see all keys rotate nothing.

LG AI Research 2025, arXiv:2507.11407. Reference: transformers' modeling_exaone4.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from treadle.models import blocks
from treadle.models.config import Keys, declare
from treadle.models.decoder import DecoderConfig, decoder, post_norm_layer
from treadle.models.registry import Family
from treadle.models.spec import Architecture, Op
from treadle.models.windows import GGUF_WINDOW, every_nth_full, no_windows
from treadle.plan.ir import Container
from treadle.plan.params import QKNorm


def has_window(keys: Keys) -> bool:
    """sliding_window, 4096 where config.json has no such key; GGUF says what there is."""
    if keys.container is Container.GGUF:
        return keys.take(GGUF_WINDOW) is not None
    return keys.take("sliding_window") is not None or "sliding_window" not in keys


def read_windows(keys: Keys, values: Mapping[str, Any]) -> tuple[int, ...]:
    if has_window(keys):
        return every_nth_full(4, 4096)(keys, values)
    keys.take("sliding_window_pattern")
    return no_windows(keys, values)


def read_turns(keys: Keys, values: Mapping[str, Any]) -> tuple[bool, ...]:
    """Layers with a window rotate; where the model has none, all do."""
    return tuple(window > 0 or not has_window(keys) for window in values["windows"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exaone4Config(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "exaone4"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Exaone4ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "exaone4"

    num_key_value_heads: int = declare(gguf="attention.head_count_kv", bounds=(1, 4096))
    windows: tuple[int, ...] = declare(reader=read_windows)
    turns: tuple[bool, ...] = declare(reader=read_turns)


def architecture(config: Exaone4Config) -> Architecture:
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, reads="x")

    def layer(window: int, turns: bool) -> tuple[Op, ...]:
        norms = {"qk_norm": QKNorm.RMS_PER_HEAD, "qk_norm_eps": config.rms_norm_eps}
        params = config.attention_params(window, rotates=turns, **norms)
        attention = blocks.attention(params, config.rope if turns else None, reads="x")
        return post_norm_layer(config, attention, mlp)

    return decoder(config, tuple(layer(*of_layer) for of_layer in zip(config.windows, config.turns, strict=True)))


FAMILY = Family(Exaone4Config, architecture)
