"""The feed-forward block, gated or plain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from treadle.compute.reference.activation import F32, sigmoid, silu
from treadle.compute.reference.linear import linear


def swiglu(
    x: F32,
    gate: F32 | None,
    up: F32,
    down: F32,
    gate_bias: F32 | None = None,
    up_bias: F32 | None = None,
    down_bias: F32 | None = None,
    activation: Callable[[F32], F32] = silu,
    clamp: tuple[float, float] | None = None,
) -> F32:
    """down(act(gate x) * up x), or down(act(up x)) where `gate` is None (Shazeer 2020, arXiv:2002.05202).

    x [rows, hidden]; gate, up [intermediate, hidden]; down [hidden, intermediate]. `clamp` = (alpha, limit) replaces
    act(g) * u by `clamped_gate`.
    """
    u = linear(x, up, up_bias)
    if gate is None:
        h = activation(u)
    else:
        g = linear(x, gate, gate_bias)
        h = activation(g) * u if clamp is None else clamped_gate(g, u, *clamp)
    return linear(h, down, down_bias)


def clamped_gate(gate: F32, up: F32, alpha: float, limit: float) -> F32:
    """(u + 1) * g * sigmoid(alpha * g), with g = min(gate, limit), u = clip(up, -limit, limit) (GptOssExperts in
    transformers' modeling_gpt_oss.py)."""
    g = np.minimum(gate, np.float32(limit))
    u = np.clip(up, np.float32(-limit), np.float32(limit))
    return (u + np.float32(1)) * g * sigmoid(np.float32(alpha) * g)
