"""Evaluates the constant weights that a plan names instead of storing: rope frequencies and ALiBi slopes.

Powers are taken in f64 of f32 exponents and rounded to f32, which is bit for bit what torch gives transformers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidWeights
from treadle.plan.ir import Generator, GeneratorKind

F32 = NDArray[np.float32]


def generate(generator: Generator, tensor: F32 | None = None) -> F32:
    """The weight, f32 [dim / 2] or [heads]; `tensor` is what ROPE_FACTORS reads. Raises InvalidWeights."""
    args = generator.args
    match generator.kind:
        case GeneratorKind.ROPE_DEFAULT:
            return rope_default(int(args[0]), args[1])
        case GeneratorKind.ROPE_LINEAR:
            return rope_default(int(args[0]), args[1]) / np.float32(args[2])
        case GeneratorKind.ROPE_LLAMA3:
            return rope_llama3(int(args[0]), *args[1:])
        case GeneratorKind.ROPE_YARN:
            return rope_yarn(int(args[0]), *args[1:])
        case GeneratorKind.ROPE_FACTORS:
            return _divided(int(args[0]), args[1], tensor)
        case GeneratorKind.ROPE_FACTOR_LIST:
            return _divided(int(args[0]), args[1], np.array(args[2:], np.float32))
        case GeneratorKind.ALIBI_SLOPES:
            return alibi_slopes(int(args[0]))


def rope_powers(dim: int, theta: float) -> F32:
    """theta^(2i / dim), i < dim / 2."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)


def rope_default(dim: int, theta: float) -> F32:
    """theta^(-2i / dim) (Su et al. 2021, arXiv:2104.09864, section 3.2.2)."""
    return np.float32(1) / rope_powers(dim, theta)


def rope_llama3(dim: int, theta: float, factor: float, low_freq: float, high_freq: float, original: float) -> F32:
    """Llama 3.1: long waves slowed by `factor`, short ones kept, those between blended (apply_scaling in Meta's
    llama-models; transformers' _compute_llama3_parameters)."""
    one = np.float32(1)
    inv_freq = rope_default(dim, theta)
    wavelength = one / inv_freq * np.float32(2 * math.pi)
    slowed: F32 = np.where(wavelength > np.float32(original / low_freq), inv_freq / np.float32(factor), inv_freq)
    between = (wavelength <= np.float32(original / low_freq)) & (wavelength >= np.float32(original / high_freq))
    turns = one / wavelength * np.float32(original)
    smooth = (turns - np.float32(low_freq)) / np.float32(high_freq - low_freq)
    blended = (one - smooth) * slowed / np.float32(factor) + smooth * slowed
    return np.where(between, blended, slowed)


def rope_yarn(
    dim: int, theta: float, factor: float, beta_fast: float, beta_slow: float, original: float, truncate: float
) -> F32:
    """YaRN: dims that turn often are kept, those that turn seldom slowed by `factor`, with a ramp between
    (Peng et al. 2023, arXiv:2309.00071, section 3.2; transformers' _compute_yarn_parameters)."""

    def turning_dim(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turning_dim(beta_fast), turning_dim(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low if high != low else 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(span), 0, 1)
    kept = np.float32(1) - ramp.astype(np.float32)
    powers = rope_powers(dim, theta)
    slowed = np.float32(1) / (np.float32(factor) * powers)
    blended: F32 = slowed * (np.float32(1) - kept) + (np.float32(1) / powers) * kept
    return blended


def alibi_slopes(heads: int) -> F32:
    """2^(-8i / n) for a power of two; other counts take every second slope of the next one (Press et al. 2021,
    arXiv:2108.12409; build_alibi_tensor in transformers' modeling_bloom.py)."""
    whole = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * i / whole) for i in range(1, whole + 1)]
    slopes += [2.0 ** (-4.0 * i / whole) for i in range(1, 2 * (heads - whole), 2)]
    return np.array(slopes, np.float32)


def _divided(dim: int, theta: float, factors: F32 | None) -> F32:
    if factors is None or factors.shape != (dim // 2,):
        found = "nothing" if factors is None else f"shape {factors.shape}"
        raise InvalidWeights(f"rope frequency factors: expected shape ({dim // 2},), found {found}")
    divided: F32 = np.float32(1) / (factors * rope_powers(dim, theta))
    return divided
