"""What a backend holds at run time and a plan file never does: tensor views, state handles, weight sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.plan.ir import DType, Layout, Symbol, WeightBinding

TensorHandle = NewType("TensorHandle", int)
"""Opaque storage of a backend: an address on the CPU, an index into a tensor list elsewhere."""


@dataclass(frozen=True, slots=True)
class TensorView:
    """A host tensor as stored: `data` is uint8 [..., row bytes], row-major, one row per leading index.

    A block-quantised row is a whole number of blocks. A 1-D tensor is one row: data [row bytes].
    """

    dtype: DType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]
    layout: Layout = Layout.ROW_MAJOR

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes between neighbours along every axis but the last."""
        return self.data.strides[:-1]


class WeightSource(Protocol):
    """Where the executor gets weights: a checkpoint behind its container, transforms applied."""

    def dtype(self, binding: WeightBinding) -> DType:
        """dtype that `load` will return; reads no tensor data. Raises InvalidWeights (missing, misshaped)."""
        ...

    def load(self, binding: WeightBinding) -> TensorView:
        """The logical weight, shape equal to `binding.shape`. May be a view of a mapped file."""
        ...

    def release(self, binding: WeightBinding) -> None:
        """The caller has its copy: the file's pages need not stay resident."""
        ...


class StepLimits(msgspec.Struct, frozen=True):
    """The largest step that a bound program admits, and the size of its state. Memory follows from it."""

    max_rows: int
    max_batch: int
    max_sampled: int
    max_seq_len: int
    state_pages: int
    """Physical pages of every paged state."""

    def sizes(self) -> Mapping[Symbol, int]:
        return {Symbol.ROWS: self.max_rows, Symbol.BATCH: self.max_batch, Symbol.SAMPLED: self.max_sampled}


@dataclass(frozen=True, slots=True)
class StateBlockHandle:
    """All pages of one state descriptor: page p begins at byte p * size_bytes of `buffer`."""

    id: int
    size_bytes: int
    align_bytes: int
    buffer: NDArray[np.uint8]

    def page(self, index: int) -> NDArray[np.uint8]:
        return self.buffer[index * self.size_bytes : (index + 1) * self.size_bytes]


@dataclass(frozen=True, slots=True)
class PhysicalMapping:
    """Registers to buffers: register r lives in buffer `buffer_of[r]`, of `buffer_bytes[...]` bytes."""

    buffer_of: tuple[int, ...]
    buffer_bytes: tuple[int, ...]

    @property
    def total_bytes(self) -> int:
        return sum(self.buffer_bytes)
