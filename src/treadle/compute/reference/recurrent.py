"""Recurrent mixers, one position after another as their papers state them: causal convolution, selective scans, the
gated delta rule.

Rows are consecutive positions of one sequence. `tail` (the convolution's last inputs, oldest first) and `state` are
what a sequence carries from one call to the next; both start as zeros and are updated in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from treadle.compute.reference.activation import F32, sigmoid, silu
from treadle.compute.reference.linear import linear
from treadle.compute.reference.norm import rmsnorm

Activation = Callable[[F32], F32]


class Conv(NamedTuple):
    """A depthwise convolution: weight [channels, width], the last column being the newest input's."""

    weight: F32
    bias: F32 | None


class SelectiveInputs(NamedTuple):
    """What makes a scan selective: x_proj [dt_rank + 2 * state, inner], dt_proj [inner, dt_rank], and where dt, B and
    C are normalised the norms' epsilon and gains (None: all ones)."""

    x_proj: F32
    dt_proj: F32
    eps: float | None = None
    dt_norm: F32 | None = None
    b_norm: F32 | None = None
    c_norm: F32 | None = None


def softplus(x: F32) -> F32:
    """log(1 + e^x)."""
    return np.logaddexp(np.float32(0), x).astype(np.float32)


def causal_conv(x: F32, tail: F32, conv: Conv) -> F32:
    """y_t = bias + sum_k weight[:, k] * x_{t - width + 1 + k}; x [rows, channels], tail [width - 1, channels]."""
    width = conv.weight.shape[1]
    whole = np.concatenate([tail, x])
    y: F32 = np.zeros_like(x) if conv.bias is None else np.broadcast_to(conv.bias, x.shape).astype(np.float32)
    for k in range(width):
        y = y + conv.weight[:, k] * whole[k : k + len(x)]
    tail[...] = whole[len(x) :]
    return y


def shortconv(
    x: F32, in_proj: F32, in_bias: F32 | None, conv: Conv, out_proj: F32, out_bias: F32 | None, tail: F32
) -> F32:
    """out(C * conv(B * u)), with B, C, u = in(x): a gated short convolution (LFM2; Lfm2ShortConv in transformers).

    x [rows, hidden], in_proj [3 * inner, hidden], out_proj [hidden, inner], tail [width - 1, inner].
    """
    b, c, u = np.split(linear(x, in_proj, in_bias), 3, axis=1)
    return linear(c * causal_conv(b * u, tail, conv), out_proj, out_bias)


def selective_scan(x: F32, dt: F32, a: F32, b: F32, c: F32, d: F32, state: F32) -> F32:
    """h_t = exp(dt_t a) h_{t-1} + dt_t B_t x_t; y_t = C_t h_t + D x_t, for each channel (Gu and Dao 2023,
    arXiv:2312.00752, algorithm 2, with the discretisation of section 3.6).

    x, dt [rows, channels]; a, state [state, channels]; b, c [rows, state]; d [channels].
    """
    y = np.empty_like(x)
    for t in range(len(x)):
        state[...] = np.exp(dt[t] * a) * state + b[t][:, None] * (dt[t] * x[t])
        y[t] = c[t] @ state + d * x[t]
    return y


def mamba(
    x: F32,
    in_proj: F32,
    in_bias: F32 | None,
    conv: Conv,
    activation: Activation,
    inputs: SelectiveInputs,
    dt_bias: F32,
    dt_limits: tuple[float, float],
    a: F32,
    d: F32,
    out_proj: F32,
    out_bias: F32 | None,
    tail: F32,
    state: F32,
) -> F32:
    """The mixer of Mamba (arXiv:2312.00752, figure 3), with norms of dt, B and C where `inputs` has them (Jamba).

    in_proj [2 * inner, hidden]: rows of x, then of the gate z. a, state [state, inner]; dt_bias, d [inner];
    out_proj [hidden, inner]; tail [width - 1, inner].
    """
    u, z = np.split(linear(x, in_proj, in_bias), 2, axis=1)
    u = activation(causal_conv(u, tail, conv))
    depth, rank = len(a), inputs.dt_proj.shape[1]
    dt, b, c = np.split(linear(u, inputs.x_proj), [rank, rank + depth], axis=1)
    if inputs.eps is not None:
        dt = rmsnorm(dt, inputs.dt_norm, inputs.eps)
        b = rmsnorm(b, inputs.b_norm, inputs.eps)
        c = rmsnorm(c, inputs.c_norm, inputs.eps)
    steps = _clipped(softplus(linear(dt, inputs.dt_proj) + dt_bias), dt_limits)
    return linear(selective_scan(u, steps, a, b, c, d, state) * silu(z), out_proj, out_bias)


def head_scan(x: F32, dt: F32, a: F32, b: F32, c: F32, d: F32, state: F32) -> F32:
    """h_t = exp(dt_t a) h_{t-1} + dt_t B_t x_t^T; y_t = C_t h_t + D x_t, for each head with a scalar a (Dao and Gu
    2024, arXiv:2405.21060, section 3.1).

    x [rows, heads, dim]; dt [rows, heads]; a, d [heads]; b, c [rows, groups, state]; state [heads, state, dim]. Heads
    share B and C in groups of consecutive ones.
    """
    heads = len(a)
    each = heads // b.shape[1]
    y = np.empty_like(x)
    for t in range(len(x)):
        step = dt[t][:, None]
        keys, queries = np.repeat(b[t], each, axis=0), np.repeat(c[t], each, axis=0)
        state[...] = np.exp(step * a[:, None])[..., None] * state + keys[..., None] * (step * x[t])[:, None, :]
        y[t] = np.einsum("hn,hnp->hp", queries, state) + d[:, None] * x[t]
    return y


def mamba2(
    x: F32,
    in_proj: F32,
    in_bias: F32 | None,
    conv: Conv,
    activation: Activation,
    groups: int,
    dt_bias: F32,
    dt_limits: tuple[float, float],
    a: F32,
    d: F32,
    norm: tuple[F32, int, float] | None,
    out_proj: F32,
    out_bias: F32 | None,
    tail: F32,
    state: F32,
) -> F32:
    """The mixer of Mamba-2 (arXiv:2405.21060, section 7.1; Mamba2Mixer in transformers).

    in_proj [inner + (inner + 2 * groups * state) + heads, hidden]: rows of the gate z, of what is convolved (x, B, C),
    of dt. a, d, dt_bias [heads]; `norm`: gain [inner], groups, epsilon of rmsnorm(y * silu(z)), without it the output
    is y * silu(z); tail [width - 1, inner + 2 * groups * state]; state [heads, state, inner / heads].
    """
    heads, depth, dim = state.shape
    inner, channels = heads * dim, len(conv.weight)
    z, xbc, dt = np.split(linear(x, in_proj, in_bias), [inner, inner + channels], axis=1)
    xbc = activation(causal_conv(xbc, tail, conv))
    u, b, c = np.split(xbc, [inner, inner + groups * depth], axis=1)
    steps = _clipped(softplus(dt + dt_bias), dt_limits)
    shape = (len(x), groups, depth)
    y = head_scan(u.reshape(len(x), heads, dim), steps, a, b.reshape(shape), c.reshape(shape), d, state)
    y = y.reshape(len(x), inner) * silu(z)
    if norm is not None:
        gain, parts, eps = norm
        y = rmsnorm(y.reshape(len(x), parts, -1), gain.reshape(parts, -1), eps).reshape(len(x), inner)
    return linear(y, out_proj, out_bias)


def delta_rule(q: F32, k: F32, v: F32, decay: F32, beta: F32, state: F32) -> F32:
    """S_t = g_t S_{t-1} + k_t (beta_t (v_t - g_t S_{t-1}^T k_t))^T; y_t = S_t^T q_t (Yang et al. 2024,
    arXiv:2412.06464, equation 10).

    q, k [rows, k_heads, k_dim]; v [rows, v_heads, v_dim]; decay g, beta [rows, v_heads]; state [v_heads, k_dim, v_dim].
    Value heads share keys in groups of consecutive ones.
    """
    each = v.shape[1] // k.shape[1]
    y = np.empty_like(v)
    for t in range(len(v)):
        queries, keys = np.repeat(q[t], each, axis=0), np.repeat(k[t], each, axis=0)
        state[...] *= decay[t][:, None, None]
        delta = beta[t][:, None] * (v[t] - np.einsum("hk,hkv->hv", keys, state))
        state[...] += keys[..., None] * delta[:, None, :]
        y[t] = np.einsum("hk,hkv->hv", queries, state)
    return y


def gated_delta_net(
    x: F32,
    qkv_proj: F32,
    z_proj: F32,
    b_proj: F32,
    a_proj: F32,
    conv: Conv,
    activation: Activation,
    k_heads: int,
    dt_bias: F32,
    decay: F32,
    norm: F32,
    eps: float,
    out_proj: F32,
    tail: F32,
    state: F32,
) -> F32:
    """The mixer of Gated DeltaNet (arXiv:2412.06464, section 3.4; Qwen3NextGatedDeltaNet in transformers).

    qkv_proj [2 * k_heads * k_dim + v_heads * v_dim, hidden]: rows of q, of k, of v. Queries and keys are divided by
    sqrt(|.|^2 + 1e-6), queries also by sqrt(k_dim). `decay` [v_heads] is -exp(A_log): g = exp(decay * softplus(a +
    dt_bias)). The output is rmsnorm(y, norm [v_dim]) * silu(z), head by head. state [v_heads, k_dim, v_dim].
    """
    v_heads, k_dim, v_dim = state.shape
    rows, keys = len(x), k_heads * k_dim
    mixed = activation(causal_conv(linear(x, qkv_proj), tail, conv))
    q, k, v = np.split(mixed, [keys, 2 * keys], axis=1)
    q = _unit(q.reshape(rows, k_heads, k_dim)) / np.float32(np.sqrt(k_dim))
    k = _unit(k.reshape(rows, k_heads, k_dim))
    beta = sigmoid(linear(x, b_proj))
    g = np.exp(decay * softplus(linear(x, a_proj) + dt_bias))
    y = delta_rule(q, k, v.reshape(rows, v_heads, v_dim), g, beta, state)
    z = linear(x, z_proj).reshape(rows, v_heads, v_dim)
    return linear((rmsnorm(y, norm, eps) * silu(z)).reshape(rows, -1), out_proj)


def _unit(x: F32) -> F32:
    squares: F32 = np.sum(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    unit: F32 = x / np.sqrt(squares + np.float32(1e-6))
    return unit


def _clipped(dt: F32, limits: tuple[float, float]) -> F32:
    clipped: F32 = np.minimum(np.maximum(dt, np.float32(limits[0])), np.float32(limits[1]))
    return clipped
