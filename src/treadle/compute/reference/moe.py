"""Mixture of experts: a router gives each row a few of many feed-forward blocks, and sums their weighted outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from treadle.compute.reference.activation import F32, sigmoid, silu
from treadle.compute.reference.linear import linear
from treadle.compute.reference.mlp import swiglu

I64 = NDArray[np.int64]
Score = Literal["softmax_then_topk", "topk_then_softmax", "sigmoid"]
GroupScore = Literal["max", "sum_top2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """How rows choose. `normalise`: the chosen weights are divided by their sum + `eps`; then all are times `scale`."""

    experts_per_row: int
    score: Score = "softmax_then_topk"
    normalise: bool = False
    eps: float = 0.0
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """gate, up [experts, intermediate, hidden], down [experts, hidden, intermediate]; gate is None where not gated."""

    gate: F32 | None
    up: F32
    down: F32
    gate_bias: F32 | None = None
    up_bias: F32 | None = None
    down_bias: F32 | None = None


def route(logits: F32, router: Router, correction: F32 | None = None) -> tuple[I64, F32]:
    """Each row's experts, ascending, and their weights: both [rows, experts_per_row]; logits [rows, experts].

    Softmax over all experts and then the largest (Switch Transformers, arXiv:2101.03961; Mixtral, arXiv:2401.04088,
    with `normalise`), the largest and then softmax over them (gpt-oss), or sigmoids (DeepSeek-V3, arXiv:2412.19437).
    `correction` is added to the scores that experts are chosen by, not to the weights. With groups only experts of the
    `top_groups` best groups are chosen, a group being as good as its best expert or the sum of its two best
    (DeepSeek-V2, arXiv:2405.04434, section 2.2.2; -V3, section 2.1.2). Of equals the first is chosen.
    """
    scores = {"softmax_then_topk": _softmax, "topk_then_softmax": lambda x: x, "sigmoid": sigmoid}[router.score](logits)
    choice = scores if correction is None else scores + correction
    if router.groups > 1:
        choice = np.where(_in_best_groups(choice, router), choice, np.float32(-np.inf))
    experts = np.sort(_largest(choice, router.experts_per_row), axis=-1)
    weights = np.take_along_axis(scores, experts, axis=-1)
    if router.score == "topk_then_softmax":
        weights = _softmax(weights)
    if router.normalise:
        weights = weights / (weights.sum(axis=-1, keepdims=True, dtype=np.float32) + np.float32(router.eps))
    return experts, weights * np.float32(router.scale)


def moe(
    x: F32,
    logits: F32,
    router: Router,
    experts: Experts,
    correction: F32 | None = None,
    shared: Experts | None = None,
    shared_router: F32 | None = None,
    activation: Callable[[F32], F32] = silu,
    clamp: tuple[float, float] | None = None,
) -> F32:
    """sum over the chosen experts e, ascending, of weight_e * mlp_e(x), + sigmoid(x shared_router^T) * shared(x).

    x [rows, hidden], logits [rows, experts] of the router. `shared` is one more block, without an axis of experts, that
    every row passes (DeepSeekMoE, arXiv:2401.06066); shared_router [1, hidden] scales it (Qwen1.5-MoE). Activation and
    `clamp` as in `swiglu`. Reference: the SparseMoeBlock classes of transformers.
    """
    chosen, weights = route(logits, router, correction)
    y = np.zeros((len(x), experts.down.shape[1]), np.float32)
    for e in np.unique(chosen):
        rows, slots = np.nonzero(chosen == e)
        y[rows] += weights[rows, slots, None] * _mlp(x[rows], _one(experts, int(e)), activation, clamp)
    if shared is None:
        return y
    z = _mlp(x, shared, activation, clamp)
    return y + (z if shared_router is None else sigmoid(linear(x, shared_router)) * z)


def _mlp(x: F32, w: Experts, activation: Callable[[F32], F32], clamp: tuple[float, float] | None) -> F32:
    return swiglu(x, w.gate, w.up, w.down, w.gate_bias, w.up_bias, w.down_bias, activation, clamp)


def _one(experts: Experts, e: int) -> Experts:
    def cut(w: F32 | None) -> F32 | None:
        return None if w is None else w[e]

    return Experts(
        gate=cut(experts.gate),
        up=experts.up[e],
        down=experts.down[e],
        gate_bias=cut(experts.gate_bias),
        up_bias=cut(experts.up_bias),
        down_bias=cut(experts.down_bias),
    )


def _softmax(x: F32) -> F32:
    e: F32 = np.exp(x - x.max(axis=-1, keepdims=True))
    y: F32 = e / e.sum(axis=-1, keepdims=True, dtype=np.float32)
    return y


def _largest(x: F32, count: int) -> I64:
    """Columns of the `count` largest of each row; of equals the first."""
    return np.argsort(-x, axis=-1, kind="stable")[:, :count]


def _in_best_groups(choice: F32, router: Router) -> NDArray[np.bool_]:
    """[rows, experts]: whether an expert is in one of its row's best groups."""
    grouped = choice.reshape(len(choice), router.groups, -1)
    counted = 1 if router.group_score == "max" else 2
    best: F32 = np.sort(grouped, axis=-1)[..., -counted:].sum(axis=-1, dtype=np.float32)
    allowed = np.zeros((len(choice), router.groups), np.bool_)
    np.put_along_axis(allowed, _largest(best, router.top_groups), True, axis=-1)
    return np.repeat(allowed, grouped.shape[-1], axis=-1)
