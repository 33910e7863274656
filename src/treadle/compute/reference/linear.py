"""Projections, table look-up and the residual sum."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from treadle.compute.reference.activation import F32, softcap

I32 = NDArray[np.int32]


def linear(x: F32, weight: F32, bias: F32 | None = None) -> F32:
    """x [rows, in] @ weight [out, in]^T + bias [out] -> [rows, out]."""
    y: F32 = x @ weight.T
    return y if bias is None else y + bias


def embedding(
    ids: I32,
    table: F32,
    scale: float = 1.0,
    position_rows: I32 | None = None,
    position_table: F32 | None = None,
    types: I32 | None = None,
    type_table: F32 | None = None,
) -> F32:
    """scale * table[ids] (+ position_table[position_rows]) (+ type_table[types]) -> [rows, hidden].

    The optional tables are BERT's (Devlin et al. 2018, arXiv:1810.04805, section 3.2); only `table` is scaled. Rows
    without `types` are of type 0.
    """
    y: F32 = table[ids] * np.float32(scale)
    if position_table is not None:
        y = y + position_table[position_rows]
    if type_table is not None:
        y = y + type_table[0 if types is None else types]
    return y


def residual_add(a: F32, b: F32, scale: float = 1.0) -> F32:
    """a + scale * b."""
    return a + np.float32(scale) * b


def lm_head(x: F32, weight: F32, bias: F32 | None = None, scale: float = 1.0, cap: float = 0.0) -> F32:
    """softcap(scale * (x @ weight^T + bias), cap): x [sampled, hidden], weight [out, hidden] -> [sampled, out]."""
    return softcap(linear(x, weight, bias) * np.float32(scale), cap)
