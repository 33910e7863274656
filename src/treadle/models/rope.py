"""Rotary position scalings: read from either door into one `Rope`, and turned into a weight that plans generate.

Formulas: transformers' modeling_rope_utils.py; `generators.py` evaluates them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from treadle.errors import UnsupportedModel
from treadle.models.config import Keys, convert, single
from treadle.models.rope_divisors import llama3_divisors, llama3_parameters
from treadle.models.spec import Names, WeightSpec
from treadle.plan.ir import Container, Generator, GeneratorKind

FREQUENCY_TENSOR: Final = "rope_freqs.weight"
"""GGUF keeps Llama 3's scaling as divisors of the default frequencies (see `rope_divisors`)."""
SHORT_FACTORS_TENSOR: Final = "rope_factors_short.weight"
"""GGUF keeps LongRoPE's factors as two tensors; the other is LONG_FACTORS_TENSOR."""
LONG_FACTORS_TENSOR: Final = "rope_factors_long.weight"
DEFAULT_THETA: Final = 10000.0
THETA_BOUNDS: Final = (1.0, 1e30)
ORIGINAL_POSITIONS: Final = "original_max_position_embeddings"
ORIGINAL_BOUNDS: Final = (2, 1 << 30)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """How positions turn the heads. `args`: of the generator, behind the rotary dim."""

    rotary_dim: int
    kind: GeneratorKind
    args: tuple[float, ...]
    scale: float = 1.0
    """Multiplies cos and sin."""

    FACTORS: ClassVar[str] = FREQUENCY_TENSOR

    def weight(self, name: str = "rope.inv_freq") -> WeightSpec:
        """The inverse frequencies [rotary_dim / 2]; layers that turn alike share one name."""
        generator = Generator(self.kind, (float(self.rotary_dim), *self.args))
        source = Names((self.FACTORS,)) if self.kind is GeneratorKind.ROPE_FACTORS else None
        return WeightSpec(name, gguf=source, generator=generator)

    def reach(self) -> int | None:
        """How many positions the frequencies hold for; None: any number."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRope(Rope):
    """LongRoPE's short factors (Ding et al. 2024, arXiv:2402.13753), for sequences of the original length.

    Longer ones would turn all positions by other factors, so that a row's values depended on rows after it.
    """

    original: int
    FACTORS: ClassVar[str] = SHORT_FACTORS_TENSOR

    def reach(self) -> int | None:
        return self.original


RopeReader = Callable[[Keys, Mapping[str, Any]], Rope]
Scaling = Callable[[Keys, float, int, Mapping[str, Any]], Rope]
"""(the rope's own keys, theta, rotary dim, the config's fields so far) -> rope."""


def read_rope(keys: Keys, values: Mapping[str, Any]) -> Rope:
    """Rope over whole heads; `values` must hold head_dim and max_position_embeddings. Raises UnsupportedModel."""
    if keys.container is Container.GGUF:
        return _from_gguf(keys, values, None)
    return _from_json(keys, values, None, SCALINGS)


def theta_or(default: float) -> RopeReader:
    """A reader of a rope over whole heads; `default`: of rope_theta where config.json has none."""

    def read(keys: Keys, values: Mapping[str, Any]) -> Rope:
        if keys.container is Container.GGUF:
            return _from_gguf(keys, values, None)
        return _from_json(keys, values, None, SCALINGS, default)

    return read


def partial_rope(
    default: float, scalings: Mapping[str, Scaling] | None = None, original: int | None = None
) -> RopeReader:
    """A reader of a rope that may turn the first dims of a head only; `default`: of partial_rotary_factor.
    `scalings`: those that the family knows, if not all. `original`: of the original_max_position_embeddings that
    stands beside the rope and counts (Phi-3), where config.json has none; None: the family has no such key."""

    def read(keys: Keys, values: Mapping[str, Any]) -> Rope:
        if keys.container is Container.GGUF:
            return _from_gguf(keys, values, default)
        if original is not None:
            stated = keys.take(ORIGINAL_POSITIONS)
            found = original if stated is None else stated
            values = {**values, ORIGINAL_POSITIONS: convert(keys, ORIGINAL_POSITIONS, found, int, ORIGINAL_BOUNDS)}
        return _from_json(keys, values, default, scalings or SCALINGS)

    return read


def rope_from(default_theta: float) -> RopeReader:
    """A reader of a rope over whole heads; `default_theta`: of config.json. llama.cpp's is the same for all."""

    def read(keys: Keys, values: Mapping[str, Any]) -> Rope:
        if keys.container is Container.GGUF:
            return _from_gguf(keys, values, None)
        return _from_json(keys, values, None, SCALINGS, default_theta)

    return read


def rope_of_kind(kind: str, default_theta: float, legacy_theta: str, gguf_theta: str) -> RopeReader:
    """A reader for models in which layers of a kind ("full_attention", "sliding_attention") have a rope of their own.

    transformers 4 has rope_scaling for full attention only and `legacy_theta`, transformers 5 has a rope_parameters
    object for each kind. GGUF's rope.scaling keys are for full attention only (llama.cpp's gemma3).
    """
    scaled = kind == "full_attention"

    def read(keys: Keys, values: Mapping[str, Any]) -> Rope:
        if keys.container is Container.GGUF:
            if scaled:
                return _from_gguf(keys, values, None)
            theta = keys.number(gguf_theta, default_theta, THETA_BOUNDS)
            return Rope(rotary_dim=values["head_dim"], kind=GeneratorKind.ROPE_DEFAULT, args=(theta,))
        if legacy_theta in keys and keys.take(legacy_theta) is None:
            keys.refuse(legacy_theta, None, "a number")
        kinds = keys.take("rope_parameters") or {}
        if not isinstance(kinds, dict) or kinds.keys() - {"full_attention", "sliding_attention"}:
            keys.refuse("rope_parameters", kinds, "an object with full_attention and sliding_attention")
        legacy = keys.take("rope_scaling") if scaled else None
        if legacy is not None and kinds.get(kind) is not None:
            keys.refuse("rope_scaling", legacy, "nothing beside rope_parameters")
        parameters = legacy or kinds.get(kind) or {}
        where = f"rope_parameters: {kind}" if legacy is None else "rope_scaling"
        inner = _inner(keys, where, parameters)
        theta = _theta(keys, inner, legacy_theta, default_theta)
        return _scaled(inner, theta, values["head_dim"], values, SCALINGS)

    return read


def _from_json(
    keys: Keys,
    values: Mapping[str, Any],
    partial: float | None,
    scalings: Mapping[str, Scaling],
    default_theta: float = DEFAULT_THETA,
) -> Rope:
    """transformers 4 has rope_theta and rope_scaling, transformers 5 has rope_parameters with theta inside."""
    found = [(key, keys.take(key)) for key in ("rope_parameters", "rope_scaling")]
    given = [(key, value) for key, value in found if value is not None]
    if len(given) > 1 and given[0][1] != given[1][1]:
        keys.refuse("rope_scaling", given[1][1], "the same as rope_parameters")
    key, parameters = given[0] if given else ("rope_scaling", {})
    inner = _inner(keys, key, parameters)
    theta = _theta(keys, inner, "rope_theta", default_theta)
    rotary_dim = values["head_dim"]
    if partial is not None:
        rotary_dim = int(rotary_dim * _either(keys, inner, "partial_rotary_factor", partial, (1e-3, 1.0)))
    return _scaled(inner, theta, rotary_dim, values, scalings)


def _inner(keys: Keys, key: str, parameters: object) -> Keys:
    if not isinstance(parameters, dict):
        keys.refuse(key, parameters, "an object")
    return Keys(keys.container, parameters, f"{keys.where}: {key}", {})


def _scaled(
    inner: Keys, theta: float, rotary_dim: int, values: Mapping[str, Any], scalings: Mapping[str, Scaling]
) -> Rope:
    """The rope that a rope_parameters object says."""
    legacy, kind = inner.take("type"), inner.take("rope_type")
    if legacy is not None and kind is not None and legacy != kind:
        inner.refuse("type", legacy, f"the same as rope_type ({kind!r})")
    name = kind or legacy or "default"
    if not isinstance(name, str) or name not in scalings:
        inner.refuse("rope_type", name, ", ".join(scalings))
    rope = scalings[name](inner, theta, rotary_dim, values)
    inner.refuse_rest((), {"partial_rotary_factor": 1.0})
    return rope


def _theta(keys: Keys, inner: Keys, key: str, default: float) -> float:
    outer, nested = keys.take(key), inner.take("rope_theta")
    if outer is not None and nested is not None and outer != nested:
        keys.refuse(key, outer, f"the same as in rope_parameters ({nested})")
    return keys.number(key, default, THETA_BOUNDS) if nested is None else inner.number("rope_theta", None, THETA_BOUNDS)


def _either(keys: Keys, inner: Keys, key: str, default: float, bounds: tuple[float, float]) -> float:
    """A number that stands beside the rope's parameters (transformers 4) or among them, unrounded."""
    outer, nested = keys.take(key), inner.take(key)
    if outer is not None and nested is not None and outer != nested:
        keys.refuse(key, outer, f"the same as in rope_parameters ({nested})")
    (keys if nested is None else inner).number(key, default, bounds)  # refuses what is no number
    found = outer if nested is None else nested
    return default if found is None else float(found)


def _default(inner: Keys, theta: float, dim: int, values: Mapping[str, Any]) -> Rope:
    return Rope(rotary_dim=dim, kind=GeneratorKind.ROPE_DEFAULT, args=(theta,))


def _dynamic(inner: Keys, theta: float, dim: int, values: Mapping[str, Any]) -> Rope:
    """NTK scaling by the sequence's length, which changes nothing up to max_position_embeddings: as far as we go."""
    inner.number("factor")
    return _default(inner, theta, dim, values)


def _linear(inner: Keys, theta: float, dim: int, values: Mapping[str, Any]) -> Rope:
    return Rope(rotary_dim=dim, kind=GeneratorKind.ROPE_LINEAR, args=(theta, inner.number("factor")))


def _llama3(inner: Keys, theta: float, dim: int, values: Mapping[str, Any]) -> Rope:
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if low >= high:
        inner.refuse("low_freq_factor", low, f"less than high_freq_factor ({high})")
    original = inner.number(ORIGINAL_POSITIONS, values["max_position_embeddings"])
    args = (theta, inner.number("factor"), low, high, original)
    return Rope(rotary_dim=dim, kind=GeneratorKind.ROPE_LLAMA3, args=args)


def _yarn(inner: Keys, theta: float, dim: int, values: Mapping[str, Any]) -> Rope:
    factor = inner.number("factor")
    beta_fast, beta_slow = inner.number("beta_fast", 32.0), inner.number("beta_slow", 1.0)
    original = inner.number(ORIGINAL_POSITIONS, values["max_position_embeddings"])
    truncate = inner.take("truncate")
    if truncate is not None and type(truncate) is not bool:
        inner.refuse("truncate", truncate, "true, false")
    args = (theta, factor, beta_fast, beta_slow, original, float(truncate is True or "truncate" not in inner))
    scale = inner.number("attention_factor", _yarn_scale(inner, factor))
    return Rope(rotary_dim=dim, kind=GeneratorKind.ROPE_YARN, args=args, scale=scale)


def _longrope(inner: Keys, theta: float, dim: int, values: Mapping[str, Any]) -> Rope:
    """transformers' _compute_longrope_parameters; the original length may stand beside the rope."""
    positions = values["max_position_embeddings"]
    stated, beside = inner.take(ORIGINAL_POSITIONS), values.get(ORIGINAL_POSITIONS)
    if stated is not None and beside is not None and stated != beside:
        inner.refuse(ORIGINAL_POSITIONS, stated, f"the same as beside the rope ({beside})")
    original = positions if stated is None else stated
    original = convert(inner, ORIGINAL_POSITIONS, original if beside is None else beside, int, ORIGINAL_BOUNDS)
    short = _factors(inner, "short_factor", dim)
    _factors(inner, "long_factor", dim)
    factor = inner.number("factor", positions / original)
    natural = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    scale = inner.number("attention_factor", natural)
    args = (theta, *short)
    return LongRope(
        rotary_dim=dim, kind=GeneratorKind.ROPE_FACTOR_LIST, args=args, scale=scale, original=min(original, positions)
    )


def _factors(inner: Keys, key: str, dim: int) -> tuple[float, ...]:
    values = inner.take(key)
    if not isinstance(values, list) or len(values) != dim // 2:
        inner.refuse(key, values, f"a list of {dim // 2} numbers")
    return tuple(float(convert(inner, key, value, float)) for value in values)


SCALINGS: Final[Mapping[str, Scaling]] = {
    "default": _default,
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "yarn": _yarn,
}
"""transformers' rope_type -> reader. Types whose frequencies change with a sequence's length (dynamic, longrope) are
served up to the length at which they do."""
LONG_SCALINGS: Final[Mapping[str, Scaling]] = {
    "default": _default,
    "longrope": _longrope,
    "su": _longrope,
    "yarn": _longrope,
}
"""Phi-3 knows LongRoPE alone, which its first configs call su or yarn."""


def gguf_rope(rope: Rope) -> tuple[dict[str, float | int | str], NDArray[np.float32] | None]:
    """A rope as GGUF says it: metadata behind the architecture's prefix, and the tensor of divisors if it takes one.
    Raises UnsupportedModel for what GGUF cannot say."""
    keys: dict[str, float | int | str] = {"rope.dimension_count": rope.rotary_dim, "rope.freq_base": rope.args[0]}
    if rope.kind is GeneratorKind.ROPE_LLAMA3:
        return keys, llama3_divisors(rope.rotary_dim, *rope.args)
    if rope.kind is GeneratorKind.ROPE_LINEAR:
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope.args[1]}
    elif rope.kind is GeneratorKind.ROPE_YARN:
        _, factor, beta_fast, beta_slow, original, _ = rope.args
        keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": factor}
        keys |= {"rope.scaling.original_context_length": int(original)}
        keys |= {"rope.scaling.yarn_beta_fast": beta_fast, "rope.scaling.yarn_beta_slow": beta_slow}
    elif rope.kind is not GeneratorKind.ROPE_DEFAULT:
        raise UnsupportedModel(f"rope frequencies of kind {rope.kind.name.lower()} have no equal in GGUF")
    return keys, None


def _yarn_scale(inner: Keys, factor: float) -> float:
    """0.1 ln(factor) + 1 (Peng et al. 2023, arXiv:2309.00071, section 3.4); DeepSeek's two mscales as a quotient."""

    def magnitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, of_all = inner.take("mscale"), inner.take("mscale_all_dim")
    if not mscale or not of_all:
        return single(magnitude(1.0))
    return single(magnitude(inner.number("mscale")) / magnitude(inner.number("mscale_all_dim")))


def _from_gguf(keys: Keys, values: Mapping[str, Any], partial: float | None) -> Rope:
    dim = values["head_dim"]
    rotary = int(convert(keys, "rope.dimension_count", keys.take("rope.dimension_count") or dim, int))
    if rotary != dim and (partial is None or rotary > dim):
        keys.refuse("rope.dimension_count", rotary, f"{dim}, the whole head" if partial is None else f"at most {dim}")
    theta = keys.number("rope.freq_base", DEFAULT_THETA, THETA_BOUNDS)
    if SHORT_FACTORS_TENSOR in keys.tensors:
        return _longrope_from_gguf(keys, theta, rotary, values)
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
        return Rope(rotary_dim=rotary, kind=GeneratorKind.ROPE_LINEAR, args=(theta, factor))
    if kind == "yarn":
        args = (theta, factor, *betas, original, 1.0)
        return Rope(rotary_dim=rotary, kind=GeneratorKind.ROPE_YARN, args=args, scale=_yarn_scale(keys, factor))
    if FREQUENCY_TENSOR not in keys.tensors:
        return Rope(rotary_dim=rotary, kind=GeneratorKind.ROPE_DEFAULT, args=(theta,))
    divisors = None if keys.values_of is None else keys.values_of(FREQUENCY_TENSOR)
    parameters = None if divisors is None else llama3_parameters(divisors, rotary, theta)
    if parameters is None:
        return Rope(rotary_dim=rotary, kind=GeneratorKind.ROPE_FACTORS, args=(theta,))
    return Rope(rotary_dim=rotary, kind=GeneratorKind.ROPE_LLAMA3, args=(theta, *map(single, parameters)))


def _longrope_from_gguf(keys: Keys, theta: float, rotary: int, values: Mapping[str, Any]) -> Rope:
    """llama.cpp has no key that says longrope: the two tensors of factors do."""
    kind = keys.take("rope.scaling.type")
    if kind not in (None, "longrope", "none"):
        keys.refuse("rope.scaling.type", kind, "none or longrope beside tensors of factors")
    positions = values["max_position_embeddings"]
    original = keys.number("rope.scaling.original_context_length", positions, (1, 1 << 30))
    scale = keys.number("rope.scaling.attn_factor", 1.0)
    generator, args = GeneratorKind.ROPE_FACTORS, [theta]
    if keys.values_of is not None:
        factors = keys.values_of(SHORT_FACTORS_TENSOR)
        if factors.shape != (rotary // 2,):
            keys.refuse(SHORT_FACTORS_TENSOR, f"shape {factors.shape}", f"({rotary // 2},)")
        generator, args = GeneratorKind.ROPE_FACTOR_LIST, [theta, *map(float, factors)]
    return LongRope(
        rotary_dim=rotary, kind=generator, args=tuple(args), scale=scale, original=min(int(original), positions)
    )
