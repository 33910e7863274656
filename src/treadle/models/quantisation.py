"""Which type each matrix gets when a model is quantised, and its encoding: the same on load and in a written file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidWeights
from treadle.formats.tensors import BLOCK_SIZES, PLAIN_DTYPES, dequantise
from treadle.models.transforms import FLOATS, Part
from treadle.plan.ir import DType

Bytes = NDArray[np.uint8]
Encode = Callable[[NDArray[np.float32], int], Bytes]
"""f32 [rows, cols] and the number of a block type -> u8 [rows, row bytes]; raises InvalidWeights."""

QUANTISED_TYPES: Final = ("q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""Block types that models can be quantised to."""
FLOAT_TYPES: Final = ("f16", "bf16", "f32")
"""Types that models can be converted to besides."""
TABLES: Final = ("embedding.table", "lm_head.weight")
"""Weights that errors show in most: kept at TABLE_TYPE where all others go lower."""
TABLE_TYPE: Final = DType.Q6_K
CHUNK_ELEMENTS: Final = 1 << 21
"""Elements that are f32 at a time: a large table need not fit in memory as such."""
EXACT: Final = ("router", "shared_router")
"""Slots whose matrices stay as they are: a rounded score may choose another expert."""
_FINE: Final = frozenset({DType.Q8_0, DType.Q6_K})


@dataclass(frozen=True, slots=True)
class Quantisation:
    """`dtype`: of the matrices, a block type or a float one."""

    dtype: DType
    encode: Encode

    def type_of(self, weight: str, shape: tuple[int, ...], stored: DType) -> DType:
        """The type that a weight [rows, cols] becomes, from its name in the plan and the type it is stored as.

        Vectors, tables of biases and routers stay as they are. Embedding table and head take TABLE_TYPE for types
        below it. Rows that are no whole number of blocks take q8_0, and what does not even fit that stays as it is.
        """
        if is_exact(weight, shape):
            return stored
        wanted = self.dtype
        if wanted in FLOATS:
            return wanted
        if weight in TABLES and wanted not in _FINE:
            wanted = TABLE_TYPE
        for dtype in (wanted, DType.Q8_0):
            if shape[-1] % block_columns(dtype) == 0:
                return dtype
        return stored

    def encoded(self, part: Part, dtype: DType) -> Bytes:
        """The part's rows as `dtype`, u8 [..., row bytes]. Raises InvalidWeights naming the row that has no code."""
        *outer, cols = part.form.shape
        data = part.data.reshape(-1, part.data.shape[-1])
        rows = len(data)
        chunk = max(1, CHUNK_ELEMENTS // cols)
        block, size = BLOCK_SIZES[dtype.name.lower()]
        out = np.empty((rows, cols // block * size), np.uint8)
        name = part.form.dtype.name.lower()
        for start in range(0, rows, chunk):
            stored = np.ascontiguousarray(data[start : start + chunk])
            values = dequantise(stored.reshape(-1), name, (len(stored), cols))
            try:
                out[start : start + chunk] = self._rows(values, dtype)
            except InvalidWeights as error:
                raise InvalidWeights(f"rows from {start} on: {error}") from None
        return out.reshape(*outer, -1)

    def signature(self, dtypes: Iterable[DType]) -> str:
        """Names the bits that floats become where they are stored as `dtypes`: the encoding of a small pattern."""
        values = ((np.arange(4 * 512) * 2654435761 >> 7) % 1024 - 512).astype(np.float32).reshape(4, 512)
        found = hashlib.sha256()
        for dtype in sorted(set(dtypes)):
            if dtype.name.lower() in QUANTISED_TYPES:
                found.update(self._rows(values, dtype).data)
        return found.hexdigest()

    def _rows(self, values: NDArray[np.float32], dtype: DType) -> Bytes:
        if dtype in FLOATS:
            with np.errstate(over="ignore"):
                floats = values.astype(PLAIN_DTYPES[dtype.name.lower()])
            bad = ~np.isfinite(floats).all(axis=1)
            if bad.any():
                raise InvalidWeights(
                    f"row {int(bad.argmax())}: values are not finite or too large for {dtype.name.lower()}"
                )
            return floats.view(np.uint8)
        return self.encode(values, int(dtype))


def is_exact(weight: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight keeps its values whatever the matrices become: vectors, tables of biases, routers."""
    slot = weight.rpartition(".")[2]
    return len(shape) < 2 or slot in EXACT or slot.endswith("_bias")


def block_columns(dtype: DType) -> int:
    return BLOCK_SIZES[dtype.name.lower()][0]
