"""Rotary position scalings: read from either door into one `Rope`, and turned into a weight that plans generate.

Formulas: transformers' modeling_rope_utils.py; `generators.py` evaluates them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from treadle.errors import UnsupportedModel
from treadle.models.config import Keys, single
from treadle.models.generators import generate, rope_powers
from treadle.models.spec import Names, WeightSpec
from treadle.plan.ir import Container, Generator, GeneratorKind

FREQUENCY_TENSOR: Final = "rope_freqs.weight"
"""GGUF keeps Llama 3's scaling as divisors of the default frequencies."""
DEFAULT_THETA: Final = 10000.0
ORIGINAL_POSITIONS: Final = "original_max_position_embeddings"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """How positions turn the heads. `args`: of the generator, behind the rotary dim."""

    rotary_dim: int
    kind: GeneratorKind
    args: tuple[float, ...]
    scale: float = 1.0
    """Multiplies cos and sin."""

    def weight(self, name: str = "rope.inv_freq") -> WeightSpec:
        """The inverse frequencies [rotary_dim / 2]; layers that turn alike share one name."""
        generator = Generator(self.kind, (float(self.rotary_dim), *self.args))
        source = Names((FREQUENCY_TENSOR,)) if self.kind is GeneratorKind.ROPE_FACTORS else None
        return WeightSpec(name, gguf=source, generator=generator)


def read_rope(keys: Keys, values: Mapping[str, Any]) -> Rope:
    """Rope over whole heads; `values` must hold head_dim and max_position_embeddings. Raises UnsupportedModel."""
    if keys.container is Container.GGUF:
        return _from_gguf(keys, values)
    return _from_json(keys, values)


def _from_json(keys: Keys, values: Mapping[str, Any]) -> Rope:
    """transformers 4 has rope_theta and rope_scaling, transformers 5 has rope_parameters with theta inside."""
    found = [(key, keys.take(key)) for key in ("rope_parameters", "rope_scaling")]
    given = [(key, value) for key, value in found if value is not None]
    if len(given) > 1 and given[0][1] != given[1][1]:
        keys.refuse("rope_scaling", given[1][1], "the same as rope_parameters")
    key, parameters = given[0] if given else ("rope_scaling", {})
    if not isinstance(parameters, dict):
        keys.refuse(key, parameters, "an object")
    inner = Keys(keys.container, parameters, f"{keys.where}: {key}", {})
    theta = _theta(keys, inner)
    legacy, kind = inner.take("type"), inner.take("rope_type")
    if legacy is not None and kind is not None and legacy != kind:
        inner.refuse("type", legacy, f"the same as rope_type ({kind!r})")
    name = kind or legacy or "default"
    if not isinstance(name, str) or name not in _SCALINGS:
        inner.refuse("rope_type", name, ", ".join(_SCALINGS))
    rope = _SCALINGS[name](inner, theta, values)
    inner.refuse_rest((), {"partial_rotary_factor": 1.0})
    return rope


def _theta(keys: Keys, inner: Keys) -> float:
    outer, nested = keys.take("rope_theta"), inner.take("rope_theta")
    if outer is not None and nested is not None and outer != nested:
        keys.refuse("rope_theta", outer, f"the same as in rope_parameters ({nested})")
    return (keys if nested is None else inner).number("rope_theta", DEFAULT_THETA, (1.0, 1e30))


def _default(inner: Keys, theta: float, values: Mapping[str, Any]) -> Rope:
    return Rope(rotary_dim=values["head_dim"], kind=GeneratorKind.ROPE_DEFAULT, args=(theta,))


def _linear(inner: Keys, theta: float, values: Mapping[str, Any]) -> Rope:
    return Rope(rotary_dim=values["head_dim"], kind=GeneratorKind.ROPE_LINEAR, args=(theta, inner.number("factor")))


def _llama3(inner: Keys, theta: float, values: Mapping[str, Any]) -> Rope:
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if low >= high:
        inner.refuse("low_freq_factor", low, f"less than high_freq_factor ({high})")
    original = inner.number(ORIGINAL_POSITIONS, values["max_position_embeddings"])
    args = (theta, inner.number("factor"), low, high, original)
    return Rope(rotary_dim=values["head_dim"], kind=GeneratorKind.ROPE_LLAMA3, args=args)


def _yarn(inner: Keys, theta: float, values: Mapping[str, Any]) -> Rope:
    factor = inner.number("factor")
    beta_fast, beta_slow = inner.number("beta_fast", 32.0), inner.number("beta_slow", 1.0)
    original = inner.number(ORIGINAL_POSITIONS, values["max_position_embeddings"])
    truncate = inner.take("truncate")
    if truncate is not None and type(truncate) is not bool:
        inner.refuse("truncate", truncate, "true, false")
    args = (theta, factor, beta_fast, beta_slow, original, float(truncate is not False))
    scale = inner.number("attention_factor", _yarn_scale(inner, factor))
    return Rope(rotary_dim=values["head_dim"], kind=GeneratorKind.ROPE_YARN, args=args, scale=scale)


_SCALINGS: Final[Mapping[str, Callable[[Keys, float, Mapping[str, Any]], Rope]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
"""transformers' rope_type -> reader. Types whose frequencies change with the length (dynamic, longrope) are refused."""


def gguf_rope(rope: Rope) -> tuple[dict[str, float | int | str], NDArray[np.float32] | None, Rope]:
    """A rope as GGUF says it: metadata behind the architecture's prefix, the tensor of divisors if it takes one, and
    the rope that a reader makes of them. Raises UnsupportedModel for what GGUF cannot say."""
    keys: dict[str, float | int | str] = {"rope.dimension_count": rope.rotary_dim, "rope.freq_base": rope.args[0]}
    if rope.kind is GeneratorKind.ROPE_LLAMA3:
        divisors = _divisors(Generator(rope.kind, (float(rope.rotary_dim), *rope.args)))
        return keys, divisors, dataclasses.replace(rope, kind=GeneratorKind.ROPE_FACTORS, args=rope.args[:1])
    if rope.kind is GeneratorKind.ROPE_LINEAR:
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope.args[1]}
    elif rope.kind is GeneratorKind.ROPE_YARN:
        _, factor, beta_fast, beta_slow, original, _ = rope.args
        keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": factor}
        keys |= {"rope.scaling.original_context_length": int(original)}
        keys |= {"rope.scaling.yarn_beta_fast": beta_fast, "rope.scaling.yarn_beta_slow": beta_slow}
    elif rope.kind is not GeneratorKind.ROPE_DEFAULT:
        raise UnsupportedModel(f"rope frequencies of kind {rope.kind.name.lower()} have no equal in GGUF")
    return keys, None, rope


def _divisors(scaled: Generator) -> NDArray[np.float32]:
    """Divisors f32 [dim / 2] of the default frequencies; what a reader makes of them is right to a bit or two."""
    dim, theta = scaled.args[:2]
    return (1.0 / (generate(scaled).astype(np.float64) * rope_powers(int(dim), theta))).astype(np.float32)


def _yarn_scale(inner: Keys, factor: float) -> float:
    """0.1 ln(factor) + 1 (Peng et al. 2023, arXiv:2309.00071, section 3.4); DeepSeek's two mscales as a quotient."""

    def magnitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, of_all = inner.take("mscale"), inner.take("mscale_all_dim")
    if not mscale or not of_all:
        return single(magnitude(1.0))
    return single(magnitude(inner.number("mscale")) / magnitude(inner.number("mscale_all_dim")))


def _from_gguf(keys: Keys, values: Mapping[str, Any]) -> Rope:
    dim = values["head_dim"]
    rotary = keys.take("rope.dimension_count")
    if rotary not in (None, dim):
        keys.refuse("rope.dimension_count", rotary, f"{dim}, the whole head")
    theta = keys.number("rope.freq_base", DEFAULT_THETA, (1.0, 1e30))
    old_linear = keys.number("rope.scale_linear", 1.0)
    kind = keys.take("rope.scaling.type") or ("none" if old_linear == 1.0 else "linear")
    factor = keys.number("rope.scaling.factor", old_linear)
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"):
        if keys.number(key, 1.0) != 1.0:
            keys.refuse(key, keys.take(key), "1.0")
    original = keys.number("rope.scaling.original_context_length", values["max_position_embeddings"])
    betas = (keys.number("rope.scaling.yarn_beta_fast", 32.0), keys.number("rope.scaling.yarn_beta_slow", 1.0))
    if kind not in ("none", "linear", "yarn"):
        keys.refuse("rope.scaling.type", kind, "none, linear, yarn")
    if kind == "linear":
        return Rope(rotary_dim=dim, kind=GeneratorKind.ROPE_LINEAR, args=(theta, factor))
    if kind == "yarn":
        args = (theta, factor, *betas, original, 1.0)
        return Rope(rotary_dim=dim, kind=GeneratorKind.ROPE_YARN, args=args, scale=_yarn_scale(keys, factor))
    tensor = FREQUENCY_TENSOR in keys.tensors
    return Rope(
        rotary_dim=dim, kind=GeneratorKind.ROPE_FACTORS if tensor else GeneratorKind.ROPE_DEFAULT, args=(theta,)
    )
