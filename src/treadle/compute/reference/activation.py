"""Elementwise functions, f32 in and out, any shape."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

_erf = np.frompyfunc(math.erf, 1, 1)


def identity(x: F32) -> F32:
    return x


def relu(x: F32) -> F32:
    return np.maximum(x, np.float32(0))


def relu2(x: F32) -> F32:
    """relu(x)^2 (So et al. 2021, "Primer", arXiv:2109.08668)."""
    return np.square(relu(x))


def tanh(x: F32) -> F32:
    return np.tanh(x)


def sigmoid(x: F32) -> F32:
    """1 / (1 + e^-x), by the side that cannot overflow."""
    e: F32 = np.exp(-np.abs(x))
    numerator: F32 = np.where(x >= 0, np.float32(1), e)
    return numerator / (np.float32(1) + e)


def silu(x: F32) -> F32:
    """x * sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118; also called swish)."""
    return x * sigmoid(x)


def gelu(x: F32) -> F32:
    """x * Phi(x), exact by erf, which is taken in f64 (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    erf = np.asarray(_erf(np.asarray(x, np.float64) / math.sqrt(2)), np.float64)
    return np.asarray(x * (0.5 * (1 + erf)), np.float32)


def gelu_tanh(x: F32) -> F32:
    """The tanh approximation of gelu (same paper, section 2)."""
    inner: F32 = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    half: F32 = x * np.float32(0.5)
    y: F32 = half + half * np.tanh(inner)
    return y


def softcap(x: F32, cap: float) -> F32:
    """cap * tanh(x / cap); cap 0 leaves x as it is (Gemma 2 report, arXiv:2408.00118, section 2)."""
    return np.float32(cap) * np.tanh(x / np.float32(cap)) if cap else x
