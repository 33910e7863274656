"""Norms over the last axis. Statistics are of the row alone, in f32."""

from __future__ import annotations

import numpy as np

from treadle.compute.reference.activation import F32


def rmsnorm(x: F32, gain: F32 | None, eps: float, gain_offset: float = 0.0) -> F32:
    """x / sqrt(mean(x^2) + eps) * (gain + gain_offset), over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467).

    Serves whole rows [rows, hidden] and heads [rows, heads, head_dim] alike. Gemma stores gain - 1: offset 1.
    """
    mean_square: F32 = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return _scaled(x / np.sqrt(mean_square + np.float32(eps)), gain, gain_offset)


def layernorm(x: F32, gain: F32 | None, bias: F32 | None, eps: float, gain_offset: float = 0.0) -> F32:
    """(x - mean) / sqrt(variance + eps) * (gain + gain_offset) + bias (Ba et al. 2016, arXiv:1607.06450)."""
    centred: F32 = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    variance: F32 = np.mean(np.square(centred), axis=-1, keepdims=True, dtype=np.float32)
    y = _scaled(centred / np.sqrt(variance + np.float32(eps)), gain, gain_offset)
    return y if bias is None else y + bias


def layernorm_per_head(x: F32, gain: F32, eps: float, gain_offset: float = 0.0) -> F32:
    """LayerNorm of each head, x [rows, heads, head_dim], each head with its own gain [heads * head_dim].

    As CohereLayerNorm in transformers' modeling_cohere.py.
    """
    return layernorm(x, gain.reshape(x.shape[1:]), None, eps, gain_offset)


def _scaled(x: F32, gain: F32 | None, gain_offset: float) -> F32:
    return x if gain is None else x * (gain + np.float32(gain_offset))
