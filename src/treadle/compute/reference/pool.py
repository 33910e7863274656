"""From the rows of one sequence to one vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from treadle.compute.reference.activation import F32, identity
from treadle.compute.reference.linear import linear
from treadle.compute.reference.norm import layernorm


def mean_row(x: F32) -> F32:
    """The mean of x [rows, hidden] over its rows (Reimers and Gurevych 2019, arXiv:1908.10084, section 3)."""
    mean: F32 = x.mean(axis=0, dtype=np.float32)
    return mean


def pool_head(
    pooled: F32,
    dense: F32 | None = None,
    dense_bias: F32 | None = None,
    head_activation: Callable[[F32], F32] = identity,
    norm: F32 | None = None,
    norm_bias: F32 | None = None,
    norm_eps: float = 0.0,
    head: F32 | None = None,
    head_bias: F32 | None = None,
    out_activation: Callable[[F32], F32] = identity,
    normalise: bool = False,
) -> F32:
    """out_activation(head(layernorm(head_activation(dense(pooled))))), unit length where `normalise`.

    pooled [batch, hidden], dense [width, hidden], head [out, width]; what is None is left out. The heads of
    transformers' BertForSequenceClassification (dense, tanh, head), RobertaForSequenceClassification (the same) and
    ModernBertForSequenceClassification (dense, gelu, norm, head); unit length as torch.nn.functional.normalize.
    """
    y = head_activation(pooled if dense is None else linear(pooled, dense, dense_bias))
    if norm is not None:
        y = layernorm(y, norm, norm_bias, norm_eps)
    y = out_activation(y if head is None else linear(y, head, head_bias))
    if not normalise:
        return y
    length = np.sqrt(np.sum(np.square(y, dtype=np.float64), axis=-1, keepdims=True)).astype(np.float32)
    unit: F32 = y / np.maximum(length, np.float32(1e-12))
    return unit
