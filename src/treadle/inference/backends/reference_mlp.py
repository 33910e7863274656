"""The reference backend's adapters of feed-forward ops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from treadle.compute import reference as ops
from treadle.inference.backends.base import F32
from treadle.inference.backends.reference_bound import ACTIVATIONS, Bound, Step
from treadle.plan.params import Activation, GroupScore, MoEParams, RouterScore, SwiGLUParams


def swiglu(op: Bound, step: Step) -> F32:
    params, w = cast(SwiGLUParams, op.params), op.weights
    clamped = params.activation == Activation.SWIGLU_CLAMPED
    return ops.swiglu(
        step.input(op),
        w["gate"],
        cast(F32, w["up"]),
        cast(F32, w["down"]),
        w["gate_bias"],
        w["up_bias"],
        w["down_bias"],
        ops.identity if clamped else ACTIVATIONS[params.activation],
        (params.alpha, params.limit) if clamped else None,
    )


_SCORES: Final[Mapping[int, ops.Score]] = {
    RouterScore.SOFTMAX_THEN_TOPK: "softmax_then_topk",
    RouterScore.TOPK_THEN_SOFTMAX: "topk_then_softmax",
    RouterScore.SIGMOID: "sigmoid",
}
_GROUP_SCORES: Final[Mapping[int, ops.GroupScore]] = {GroupScore.MAX: "max", GroupScore.SUM_TOP2: "sum_top2"}


def moe(op: Bound, step: Step) -> F32:
    params, w, x = cast(MoEParams, op.params), op.weights, step.input(op)
    clamped = params.activation == Activation.SWIGLU_CLAMPED
    router = ops.Router(
        experts_per_row=params.experts_per_token,
        score=_SCORES[params.router_score],
        normalise=params.normalise == 1,
        eps=params.normalise_eps,
        scale=params.routed_scale,
        groups=params.num_groups,
        top_groups=params.top_groups,
        group_score=_GROUP_SCORES[params.group_score],
    )
    experts = ops.Experts(
        gate=w["gate"],
        up=cast(F32, w["up"]),
        down=cast(F32, w["down"]),
        gate_bias=w["gate_bias"],
        up_bias=w["up_bias"],
        down_bias=w["down_bias"],
    )
    shared = (
        ops.Experts(gate=w["shared_gate"], up=cast(F32, w["shared_up"]), down=cast(F32, w["shared_down"]))
        if params.shared_intermediate
        else None
    )
    return ops.moe(
        x,
        ops.linear(x, cast(F32, w["router"]), w["router_bias"]),
        router,
        experts,
        w["score_correction"],
        shared,
        w["shared_router"],
        ops.identity if clamped else ACTIVATIONS[params.activation],
        (params.alpha, params.limit) if clamped else None,
    )
