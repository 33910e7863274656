"""The reference backend's adapter of pool."""

from __future__ import annotations

from typing import cast

import numpy as np

from treadle.compute import reference as ops
from treadle.inference.backends.base import F32
from treadle.inference.backends.reference_bound import ACTIVATIONS, Bound, Step
from treadle.plan.params import Pooling, PoolParams


def pool(op: Bound, step: Step) -> F32:
    step.check_whole(op)
    params, w, x = cast(PoolParams, op.params), op.weights, step.input(op)
    lengths = step.context.query_lens
    ends = np.cumsum(lengths)
    if params.pooling == Pooling.MEAN:
        pooled = np.stack([ops.mean_row(rows) for rows in np.split(x, ends[:-1])])
    else:
        pooled = x[ends - (lengths if params.pooling == Pooling.CLS else 1)]
    return ops.pool_head(
        pooled,
        w["dense"],
        w["dense_bias"],
        ACTIVATIONS[params.head_activation],
        w["norm"],
        w["norm_bias"],
        params.norm_eps,
        w["head"],
        w["head_bias"],
        ACTIVATIONS[params.out_activation],
        bool(params.normalise),
    )
