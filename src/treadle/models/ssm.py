"""What models of Mamba layers alone share: their config fields, and the program x += mixer(norm(x))."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from treadle.models import blocks
from treadle.models.blocks import Norm
from treadle.models.config import Config, Keys, convert, declare
from treadle.models.decoder import GGUF_HEAD, GGUF_TABLE, decoder, read_vocab_size
from treadle.models.spec import Architecture, Op, weight
from treadle.plan.ir import Container, ModelFacts
from treadle.plan.params import Activation

HF_LAYER: Final = "backbone.layers.{layer}."
NO_LIMIT: Final = 1 << 20
"""Positions of a model that knows none; llama.cpp's converter writes the same number."""
INIT_ONLY: Final = frozenset(
    {"time_step_min", "time_step_max", "time_step_floor", "time_step_scale", "time_step_init_scheme"}
)
"""Keys that only say how fresh weights are drawn."""
IGNORED: Final = INIT_ONLY | {"rescale_prenorm_residual", "residual_in_fp32", "use_mambapy", "use_associative_scan"}
"""... or in which of two equal ways a value is calculated; all is f32 here."""


def read_expanded(key: str) -> Callable[[Keys, Mapping[str, Any]], int]:
    """A reader of hidden_size times the number at `key` of config.json; GGUF states the product."""

    def read(keys: Keys, values: Mapping[str, Any]) -> int:
        if keys.container is Container.GGUF:
            return int(convert(keys, "ssm.inner_size", keys.take("ssm.inner_size"), int))
        found = keys.take(key)
        return int(values["hidden_size"]) * int(convert(keys, key, 2 if found is None else found, int, (1, 64)))

    return read


def read_inner(keys: Keys, values: Mapping[str, Any]) -> int:
    inner = read_expanded("expand")(keys, values)
    for key in ("intermediate_size", "d_inner") if keys.container is not Container.GGUF else ():
        if keys.take(key) not in (None, inner):
            keys.refuse(key, keys.take(key), f"{inner}, hidden_size * expand")
    return inner


def read_heads(count: str, dim: str, default_dim: int | str) -> Callable[[Keys, Mapping[str, Any]], int]:
    """A reader of the number of heads at `count`; the width at `dim` must be what they leave of the inner size, or
    "auto". GGUF calls the number ssm.time_step_rank."""

    def read(keys: Keys, values: Mapping[str, Any]) -> int:
        gguf = keys.container is Container.GGUF
        inner = int(next(values[name] for name in ("inner_size", "mamba_inner") if name in values))
        name = "ssm.time_step_rank" if gguf else count
        found = keys.take(name)
        heads = int(convert(keys, name, 128 if found is None and not gguf else found, int))
        if inner % heads:
            keys.refuse(name, heads, f"a divisor of {inner}")
        width = None if gguf else keys.take(dim)
        if not gguf and (default_dim if width is None else width) not in ("auto", inner // heads):
            keys.refuse(dim, width, f"{inner // heads}, the inner size divided by {heads} heads")
        return heads

    return read


def read_dt_rank(key: str) -> Callable[[Keys, Mapping[str, Any]], int]:
    """A reader of a number or "auto", hidden_size / 16 rounded up."""

    def read(keys: Keys, values: Mapping[str, Any]) -> int:
        name = "ssm.time_step_rank" if keys.container is Container.GGUF else key
        found = keys.take(name)
        if keys.container is not Container.GGUF and found in (None, "auto"):
            return math.ceil(int(values["hidden_size"]) / 16)
        return int(convert(keys, name, found, int))

    return read


def read_dt_limits(keys: Keys, values: Mapping[str, Any]) -> tuple[float, float]:
    """time_step_limit, [0, inf] where there is none; GGUF has no such limits."""
    if keys.container is Container.GGUF:
        return (0.0, math.inf)
    found = keys.take("time_step_limit")
    limits = [0.0, math.inf] if found is None else found
    # transformers writes infinity as an object, older checkpoints as the bare word that JSON readers take.
    limits = [_number(limit) for limit in limits] if isinstance(limits, list) else limits
    if not isinstance(limits, list) or len(limits) != 2 or any(type(v) not in (int, float) for v in limits):
        keys.refuse("time_step_limit", found, "two numbers")
    low, high = float(limits[0]), float(limits[1])
    if not (0.0 <= low <= high and low < math.inf and high > 0.0):
        keys.refuse("time_step_limit", found, "0 <= low <= high, low not infinite")
    return low, high


def _number(limit: object) -> object:
    return math.inf if limit == {"__float__": "Infinity"} else limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSMConfig(Config):
    """Fields of a model of Mamba layers, named as in transformers."""

    GGUF_ONLY: ClassVar[Mapping[str, object]] = {"feed_forward_length": 0, "attention.head_count": 0}

    vocab_size: int = declare(reader=read_vocab_size)
    hidden_size: int = declare(gguf="embedding_length")
    num_hidden_layers: int = declare(gguf="block_count", bounds=(1, 1024))
    state_size: int = declare(gguf="ssm.state_size", bounds=(1, 4096))
    conv_kernel: int = declare(4, gguf="ssm.conv_kernel", bounds=(1, 64))
    inner_size: int = declare(reader=read_inner)
    max_position_embeddings: int = declare(NO_LIMIT, hf=None, gguf="context_length", bounds=(1, 1 << 30))
    hidden_act: Activation = declare(Activation.SILU, choices=blocks.ACTIVATIONS)
    layer_norm_epsilon: float = declare(1e-5, gguf="attention.layer_norm_rms_epsilon", bounds=(0.0, 1.0))
    use_bias: bool = declare(False, gguf_tensor="blk.0.ssm_in.bias")
    use_conv_bias: bool = declare(True, gguf_tensor="blk.0.ssm_conv1d.bias")
    tie_word_embeddings: bool = declare(True, gguf_tensor=f"!{GGUF_HEAD}")

    @property
    def norm(self) -> Norm:
        return Norm(eps=self.layer_norm_epsilon)

    @property
    def rope(self) -> None:
        """Nothing is rotated."""

    def facts(self) -> ModelFacts:
        return ModelFacts(
            model_type=self.planned_as(),
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            max_positions=self.max_position_embeddings,
            layers=self.num_hidden_layers,
        )


def ssm(config: SSMConfig, mixer: Op) -> Architecture:
    """Embedding, layers of norm, mixer and residual, final norm, head."""
    layer = (
        config.norm.of_layer("mixer_norm", "norm", "attn_norm", hf_layer=HF_LAYER),
        mixer,
        blocks.residual(),
    )
    table = weight("embedding.table", "backbone.embeddings.weight", GGUF_TABLE)
    return decoder(config, (layer,) * config.num_hidden_layers, table=table, final_norm="backbone.norm_f")
