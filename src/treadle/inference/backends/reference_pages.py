"""Keys, values and latents in the reference backend's pages of state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.compute import reference as ops
from treadle.inference.backends.base import F32
from treadle.inference.backends.reference_bound import NUMPY, Bound, Step
from treadle.plan.ir import DType
from treadle.plan.params import KV_BLOCK


def with_past(op: Bound, step: Step, slot: int, kv_dtype: int, new: Sequence[F32]) -> list[F32]:
    """Writes the rows that a slot brings to its pages; returns all of the slot's, each [positions, ...] of f32.

    A page holds one array of `new` after another, each [page_tokens, ...] in `kv_dtype`; in q8_0 blocks of 32 of the
    last axis.
    """
    if op.state is None:
        step.check_whole(op)
        return list(new)
    context, tokens = step.context, op.page_tokens
    q8_0 = kv_dtype == DType.Q8_0
    dtype: np.dtype[Any] = ops.BLOCK_Q8_0 if q8_0 else NUMPY[DType(kv_dtype)]
    shapes = [(tokens, *x.shape[1:-1], x.shape[-1] // (KV_BLOCK if q8_0 else 1)) for x in new]
    stored: list[NDArray[Any]] = [ops.to_q8_0(x) if q8_0 else x for x in new]
    begin, end = int(context.positions[slot]), int(context.seq_lens[slot])
    kept: list[list[NDArray[Any]]] = [[] for _ in new]
    for p in range(-(-end // tokens)):
        page = op.state.page(int(context.page_table[slot, p])).view(dtype)
        first, last = max(begin, p * tokens), min(end, (p + 1) * tokens)
        at = 0
        for x, shape, all_pages in zip(stored, shapes, kept, strict=True):
            size = int(np.prod(shape))
            part = page[at : at + size].reshape(shape)
            at += size
            if first < last:
                part[first - p * tokens : last - p * tokens] = x[first - begin : last - begin]
            all_pages.append(part)
    found = [np.concatenate(pages)[:end] for pages in kept]
    return [ops.from_q8_0(x) if q8_0 else x.astype(np.float32) for x in found]
