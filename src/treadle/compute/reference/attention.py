"""Rotary positions and scaled dot-product attention with grouped heads, over keys given in full."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from treadle.compute.reference.activation import F32, sigmoid, softcap
from treadle.compute.reference.linear import linear

I32 = NDArray[np.int32]
BLOCK_Q8_0 = np.dtype([("scale", np.float16), ("quants", np.int8, 32)])
"""32 elements as ggml's q8_0 keeps them, 34 bytes."""


def to_q8_0(x: F32) -> NDArray[np.void]:
    """Blocks of 32 along the last axis: scale = max|x| / 127, quants = round(x * (127 / max|x|)), ties to even.

    x [..., n], n a multiple of 32 -> [..., n / 32] of BLOCK_Q8_0.
    """
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    largest = np.abs(blocks).max(axis=-1)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    kept = np.empty(largest.shape, BLOCK_Q8_0)
    kept["scale"] = np.minimum(largest / np.float32(127), np.float32(65504))
    kept["quants"] = np.rint(blocks * inverse[..., None])
    return kept


def from_q8_0(kept: NDArray[np.void]) -> F32:
    """[..., n / 32] of BLOCK_Q8_0 -> f32 [..., n]; every element is exact."""
    values: F32 = kept["quants"].astype(np.float32) * kept["scale"].astype(np.float32)[..., None]
    return values.reshape(*kept.shape[:-1], -1)


def rope(x: F32, positions: I32, inv_freq: F32, interleaved: bool = False, scale: float = 1.0) -> F32:
    """Rotate the first 2 * len(inv_freq) dims of each head by positions * inv_freq (Su et al. 2021, arXiv:2104.09864).

    x [rows, heads, head_dim], positions [rows]. Pairs are (i, i + rotary_dim / 2), as in transformers, or (2i, 2i + 1)
    as in the paper where `interleaved`. `scale` multiplies cos and sin (YaRN's attention factor, arXiv:2309.00071).
    """
    half = len(inv_freq)
    angles = (positions.astype(np.float32)[:, None] * inv_freq)[:, None, :]
    cos, sin = np.cos(angles) * np.float32(scale), np.sin(angles) * np.float32(scale)
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
    )
    a, b = x[..., first], x[..., second]
    y = x.copy()
    y[..., first] = a * cos - b * sin
    y[..., second] = b * cos + a * sin
    return y


def visible(q_positions: I32, k_positions: I32, causal: bool, window: int) -> NDArray[np.bool_]:
    """Which keys each query sees, [rows, keys].

    Causal: keys at or before the query, with a window those in (q - window, q] (Mistral 7B, arXiv:2310.06825).
    Not causal: all keys, with a window those at |q - k| < window.
    """
    ahead: I32 = k_positions[None, :] - q_positions[:, None]
    seen: NDArray[np.bool_] = ahead <= 0 if causal else np.ones(ahead.shape, np.bool_)
    if window:
        seen = seen & (np.abs(ahead) < window)
    return seen


def alibi_bias(slopes: F32, q_positions: I32, k_positions: I32) -> F32:
    """-slope * |q - k|, [heads, rows, keys] (Press et al. 2021, arXiv:2108.12409)."""
    ahead: I32 = q_positions[:, None] - k_positions[None, :]
    distance: F32 = np.abs(ahead).astype(np.float32)
    return -slopes[:, None, None] * distance


def attention(
    q: F32,
    k: F32,
    v: F32,
    q_positions: I32,
    k_positions: I32,
    scale: float,
    causal: bool = True,
    window: int = 0,
    cap: float = 0.0,
    sinks: F32 | None = None,
    slopes: F32 | None = None,
) -> F32:
    """softmax(mask(softcap(scale * q k^T, cap) + alibi)) v -> [rows, heads, v_head_dim] (Vaswani et al. 2017).

    q [rows, heads, head_dim], k [keys, kv_heads, head_dim], v [keys, kv_heads, v_head_dim]; query head h reads kv head
    h // (heads / kv_heads) (Ainslie et al. 2023, arXiv:2305.13245). `sinks` [heads] joins each head's softmax as the
    score of a key whose value is zero (gpt-oss). Every query must see at least one key or a sink.
    """
    rows, heads, _ = q.shape
    group = heads // k.shape[1]
    keys, values = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.matmul(q.transpose(1, 0, 2), keys.transpose(1, 2, 0)) * np.float32(scale)
    scores = softcap(scores, cap)
    if slopes is not None:
        scores = scores + alibi_bias(slopes, q_positions, k_positions)
    scores = np.where(visible(q_positions, k_positions, causal, window), scores, np.float32(-np.inf))
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (heads, rows, 1))], axis=-1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True, dtype=np.float32)
    mixed: F32 = np.matmul(weights[..., : len(k)], values.transpose(1, 0, 2))
    return mixed.transpose(1, 0, 2)


def latent_attention(
    q: F32,
    q_rope: F32,
    latents: F32,
    k_rope: F32,
    kv_b: F32,
    q_positions: I32,
    k_positions: I32,
    scale: float,
    causal: bool = True,
) -> F32:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, equations 9 to 19) -> [rows, heads, v_head_dim].

    q [rows, heads, nope], q_rope [rows, heads, rope], latents [keys, kv_lora] (normalised), k_rope [keys, rope], the
    rope parts already turned; kv_b [heads * (nope + v_head_dim), kv_lora] makes each head's key and value of a latent.
    Every head's key ends with the one rotated part that all share.
    """
    heads, nope = q.shape[1:]
    expanded = linear(latents, kv_b).reshape(len(latents), heads, -1)
    shared = np.broadcast_to(k_rope[:, None, :], (len(latents), heads, k_rope.shape[-1]))
    k = np.concatenate([expanded[..., :nope], shared], axis=-1)
    v = expanded[..., nope:]
    return attention(np.concatenate([q, q_rope], axis=-1), k, v, q_positions, k_positions, scale, causal)


def gate_output(attended: F32, x: F32, gate: F32) -> F32:
    """attended [rows, o_dim] * sigmoid(x [rows, hidden] @ gate [o_dim, hidden]^T) (Qiu et al., arXiv:2505.06708)."""
    return attended * sigmoid(linear(x, gate))
