"""Encodes rows of f32 values as blocks of a quantised file type, on the native core's threads.

The bytes do not depend on the instruction set or on the threads. q8_0, q4_0, q4_1, q5_0 and q5_1 are rounded as ggml's
reference does; the K types and iq4_nl minimise the squared error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from treadle import _native
from treadle.errors import InvalidWeights

__all__ = ["RowEncoder"]


class RowEncoder:
    """Encodes on `threads` threads. `isa`: "" for the best that the machine has."""

    def __init__(self, threads: int, isa: str = "") -> None:
        self._pool = _native.ThreadPool(threads)
        self._isa = isa

    def __call__(self, values: NDArray[np.float32], dtype: int) -> NDArray[np.uint8]:
        """Values [rows, cols] -> u8 [rows, row bytes]; `dtype`: the number that the plan contract gives the type.

        Raises InvalidWeights naming the first row with values that are not finite or too large for the type.
        """
        rows, cols = values.shape
        block_cols, block_bytes = _native.encoded_block(dtype)
        out = np.empty(rows * (cols // block_cols) * block_bytes, np.uint8)
        failed = _native.encode(self._pool, self._isa, np.ascontiguousarray(values), dtype, out)
        if failed >= 0:
            raise InvalidWeights(f"row {failed}: values are not finite or too large to be quantised")
        return out.reshape(rows, -1)
