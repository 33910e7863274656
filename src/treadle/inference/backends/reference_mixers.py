"""The reference backend's adapters of recurrent mixers: each slot's rows with that slot's page of state.

A page holds f32: the convolution's tail [conv_width - 1, channels], then the state as the op lays it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np

from treadle.compute import reference as ops
from treadle.inference.backends.base import F32
from treadle.inference.backends.reference_bound import ACTIVATIONS, Bound, Step
from treadle.plan.params import GatedDeltaNetParams, MambaNorm, MambaParams, ShortConvParams
from treadle.plan.views import StateBlockHandle


def shortconv(op: Bound, step: Step) -> F32:
    params, w = cast(ShortConvParams, op.params), op.weights
    x = step.input(op)
    out = np.empty((len(x), len(_needed(op, "out"))), np.float32)
    for rows, tail, _ in _slots(op, step, params.inner, params.conv_width):
        out[rows] = ops.shortconv(
            x[rows], _needed(op, "in"), w["in_bias"], _conv(op), _needed(op, "out"), w["out_bias"], tail
        )
    return out


def mamba(op: Bound, step: Step) -> F32:
    """Both generations; a of generation 1 is [state, inner]."""
    params = cast(MambaParams, op.params)
    x = step.input(op)
    out = np.empty((len(x), len(_needed(op, "out"))), np.float32)
    mixer = _mamba1 if params.generation == 1 else _mamba2
    for rows, tail, rest in _slots(op, step, params.dims()["conv_channels"], params.conv_width):
        out[rows] = mixer(op, params, x[rows], tail, rest[: params.inner * params.state])
    return out


def _mamba1(op: Bound, params: MambaParams, x: F32, tail: F32, state: F32) -> F32:
    w, shape = op.weights, (params.state, params.inner)
    eps = params.norm_eps if params.norm == MambaNorm.RMS_DT_B_C else None
    inputs = ops.SelectiveInputs(_needed(op, "x"), _needed(op, "dt"), eps, w["dt_norm"], w["b_norm"], w["c_norm"])
    return ops.mamba(
        x,
        _needed(op, "in"),
        w["in_bias"],
        _conv(op),
        ACTIVATIONS[params.activation],
        inputs,
        _needed(op, "dt_bias"),
        (params.dt_min, params.dt_max),
        _needed(op, "a").reshape(shape),
        _needed(op, "d"),
        _needed(op, "out"),
        w["out_bias"],
        tail,
        state.reshape(shape),
    )


def _mamba2(op: Bound, params: MambaParams, x: F32, tail: F32, state: F32) -> F32:
    w, gain = op.weights, op.weights["norm"]
    return ops.mamba2(
        x,
        _needed(op, "in"),
        w["in_bias"],
        _conv(op),
        ACTIVATIONS[params.activation],
        params.groups,
        _needed(op, "dt_bias"),
        (params.dt_min, params.dt_max),
        _needed(op, "a"),
        _needed(op, "d"),
        None if gain is None else (gain, params.norm_groups, params.norm_eps),
        _needed(op, "out"),
        w["out_bias"],
        tail,
        state.reshape(params.heads, params.state, -1),
    )


def gated_delta_net(op: Bound, step: Step) -> F32:
    params = cast(GatedDeltaNetParams, op.params)
    x, shape = step.input(op), (params.num_v_heads, params.k_head_dim, params.v_head_dim)
    out = np.empty((len(x), len(_needed(op, "out"))), np.float32)
    for rows, tail, rest in _slots(op, step, params.dims()["conv_channels"], params.conv_width):
        out[rows] = ops.gated_delta_net(
            x[rows],
            _needed(op, "qkv"),
            _needed(op, "z"),
            _needed(op, "b"),
            _needed(op, "a"),
            _conv(op),
            ACTIVATIONS[params.activation],
            params.num_k_heads,
            _needed(op, "dt_bias"),
            _needed(op, "decay"),
            _needed(op, "norm"),
            params.norm_eps,
            _needed(op, "out"),
            tail,
            rest[: int(np.prod(shape))].reshape(shape),
        )
    return out


def _slots(op: Bound, step: Step, channels: int, width: int) -> Iterator[tuple[slice, F32, F32]]:
    """(rows, tail [width - 1, channels], the page behind it) of every slot; both are views of the page."""
    state = cast(StateBlockHandle, op.state)
    start, cut = 0, (width - 1) * channels
    for slot, count in zip(step.context.state_slots.tolist(), step.context.query_lens.tolist(), strict=True):
        page = state.page(slot).view(np.float32)
        yield slice(start, start + count), page[:cut].reshape(width - 1, channels), page[cut:]
        start += count


def _conv(op: Bound) -> ops.Conv:
    return ops.Conv(_needed(op, "conv"), op.weights["conv_bias"])


def _needed(op: Bound, name: str) -> F32:
    return cast(F32, op.weights[name])
