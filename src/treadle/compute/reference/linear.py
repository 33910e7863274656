"""Projections, table look-up and the residual sum."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from treadle.compute.reference.activation import F32, softcap

I32 = NDArray[np.int32]


SMALLEST_BF16 = 2.0**-50
"""What is rounded to bf16 before it is multiplied is 0 below this magnitude."""


def round_bf16(x: F32) -> F32:
    """The nearest bf16 of finite values, ties to even (IEEE 754); 0 below SMALLEST_BF16."""
    bits = x.astype(np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.abs(x) < SMALLEST_BF16, np.float32(0), nearest.view(np.float32))


def linear_bf16(x: F32, weight: F32, bias: F32 | None = None) -> F32:
    """`linear` in bf16 numerics: both operands are rounded to bf16 and their products summed in f64.

    Native kernels add in f32, in one fixed order: in each 32 columns the even and the odd ones apart, by fma from 0.
    """
    y = round_bf16(x).astype(np.float64) @ round_bf16(weight).astype(np.float64).T
    return (y if bias is None else y + bias).astype(np.float32)


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
