"""A checkpoint as a plan's weight source: finds, checks and cuts tensors, on their stored bytes.

Rows are moved as bytes, so quantised weights stay as they are in the file. Implements `plan.views.WeightSource`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidWeights, UnsupportedModel
from treadle.formats.tensors import BLOCK_SIZES, TensorInfo, TensorSource, dequantise
from treadle.models.compile import MATRIX_DTYPES
from treadle.models.generators import generate
from treadle.plan.ir import Container, DType, Source, Transform, TransformKind, WeightBinding
from treadle.plan.views import TensorView

Bytes = NDArray[np.uint8]


class CheckpointWeights:
    """The weights of one container."""

    def __init__(self, tensors: TensorSource, where: str) -> None:
        self._tensors = tensors
        self._known = frozenset(tensors.names())
        self._container = Container.GGUF if tensors.container == "gguf" else Container.SAFETENSORS
        self._where = where

    def check(self, bindings: Iterable[WeightBinding], unused: tuple[str, ...] = ()) -> None:
        """Every binding is there, of the right shape and of a type it accepts, and no tensor is left over.

        `unused`: patterns of tensors that may be left over. Raises InvalidWeights or UnsupportedModel naming the
        tensor. Reads no tensor data.
        """
        wanted: set[str] = set()
        for binding in bindings:
            self.dtype(binding)
            source = self._source(binding)
            wanted.update(source.tensors if source is not None else ())
        for name in sorted(self._known - wanted):
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in unused):
                raise UnsupportedModel(f"{self._where}: tensor {name!r} has no place in this architecture")

    def dtype(self, binding: WeightBinding) -> DType:
        """dtype that `load` will return. Raises InvalidWeights (missing, misshaped) or UnsupportedModel (type)."""
        source = self._source(binding)
        if binding.generator is not None:
            if source is not None:
                self._info(source.tensors[0], binding)
            return DType.F32
        assert source is not None
        infos = [self._info(name, binding) for name in source.tensors]
        shape, dtype = transformed(infos, source.transforms, binding)
        if shape != binding.shape:
            found = ", ".join(f"{info.name} {list(info.shape)}" for info in infos)
            raise InvalidWeights(
                f"{self._where}: weight {binding.name}: expected shape {list(binding.shape)}, found {found}"
            )
        if dtype not in binding.dtypes:
            raise InvalidWeights(
                f"{self._where}: weight {binding.name}: tensor {infos[0].name!r} has type {infos[0].dtype}, "
                f"expected {_listed(binding.dtypes)}"
            )
        return dtype

    def load(self, binding: WeightBinding) -> TensorView:
        """The logical weight; a view of the mapped file where no transform moves bytes."""
        dtype = self.dtype(binding)
        source = self._source(binding)
        if binding.generator is not None:
            values = generate(binding.generator, None if source is None else self._values(source.tensors[0]))
            if values.shape != binding.shape:
                raise InvalidWeights(
                    f"weight {binding.name}: expected shape {list(binding.shape)}, generated {list(values.shape)}"
                )
            return TensorView(DType.F32, binding.shape, values.view(np.uint8))
        assert source is not None
        parts = [self._rows(self._info(name, binding)) for name in source.tensors]
        for transform in source.transforms:
            parts = apply(transform, parts)
        (rows,) = parts
        data = rows.reshape(-1) if len(binding.shape) == 1 else rows.reshape(*binding.shape[:-1], -1)
        return TensorView(dtype, binding.shape, data)

    def release(self, binding: WeightBinding) -> None:
        """Give the file's pages back: the caller has its copy."""
        source = self._source(binding)
        for name in () if source is None else source.tensors:
            self._tensors.drop(name)

    def _source(self, binding: WeightBinding) -> Source | None:
        found = [source for source in binding.sources if source.container == self._container]
        if not found and binding.generator is None:
            raise InvalidWeights(f"{self._where}: weight {binding.name} has no name in {self._container.name.lower()}")
        return found[0] if found else None

    def _info(self, name: str, binding: WeightBinding) -> TensorInfo:
        if name not in self._known:
            raise InvalidWeights(f"{self._where}: tensor {name!r} is missing (weight {binding.name})")
        info = self._tensors.info(name)
        if dtype_of(info.dtype) not in MATRIX_DTYPES:
            raise UnsupportedModel(
                f"{self._where}: tensor {name!r} has type {info.dtype}; supported: {_listed(MATRIX_DTYPES)}"
            )
        return info

    def _rows(self, info: TensorInfo) -> Bytes:
        """The stored bytes as [rows, row bytes]; a vector is a row per element, so that rows move alike."""
        raw = self._tensors.raw(info.name)
        elements, size = BLOCK_SIZES[info.dtype]
        row = size if len(info.shape) == 1 and elements == 1 else info.shape[-1] // elements * size
        return raw.reshape(-1, row)

    def _values(self, name: str) -> NDArray[np.float32]:
        info = self._tensors.info(name)
        return dequantise(self._tensors.raw(name), info.dtype, info.shape)


def dtype_of(name: str) -> DType | None:
    """The plan's dtype for a container's canonical name; None where plans have none."""
    return DType.__members__.get(name.upper())


def transformed(
    infos: list[TensorInfo], transforms: tuple[Transform, ...], binding: WeightBinding
) -> tuple[tuple[int, ...], DType]:
    """Shape and dtype after the transforms. Raises InvalidWeights where they cannot apply."""
    shapes = [info.shape for info in infos]
    names = {info.dtype for info in infos}
    if len(names) > 1:
        raise InvalidWeights(f"weight {binding.name}: its tensors differ in type: {', '.join(sorted(names))}")
    for transform in transforms:
        shapes = _SHAPES[transform.kind](transform.args, shapes, f"weight {binding.name}")
    if len(shapes) != 1:
        raise InvalidWeights(f"weight {binding.name}: {len(shapes)} tensors where one is expected")
    dtype = dtype_of(names.pop())
    assert dtype is not None
    return shapes[0], dtype


def apply(transform: Transform, parts: list[Bytes]) -> list[Bytes]:
    """Move rows; each part is [rows, row bytes]."""
    return _MOVES[transform.kind](transform.args, parts)


Shapes = list[tuple[int, ...]]


def _same_shape(args: tuple[int, ...], shapes: Shapes, where: str) -> Shapes:
    (heads,) = args
    for shape in shapes:
        if shape[0] % (2 * heads):
            raise InvalidWeights(f"{where}: {shape[0]} rows are not {heads} heads of pairs")
    return shapes


def _sliced_shape(args: tuple[int, ...], shapes: Shapes, where: str) -> Shapes:
    start, stop = args
    for shape in shapes:
        if stop > shape[0]:
            raise InvalidWeights(f"{where}: rows {start}..{stop} of a tensor of {shape[0]}")
    return [(stop - start, *shape[1:]) for shape in shapes]


def _concatenated_shape(args: tuple[int, ...], shapes: Shapes, where: str) -> Shapes:
    if len({shape[1:] for shape in shapes}) != 1:
        raise InvalidWeights(f"{where}: cannot join rows of shapes {shapes}")
    return [(sum(shape[0] for shape in shapes), *shapes[0][1:])]


def _pair_rows(args: tuple[int, ...], parts: list[Bytes]) -> list[Bytes]:
    """Row (head, pair, half) -> (head, half, pair): the inverse of llama.cpp's permute."""
    (heads,) = args
    return [part.reshape(heads, -1, 2, part.shape[-1]).swapaxes(1, 2).reshape(part.shape) for part in parts]


def _slice_rows(args: tuple[int, ...], parts: list[Bytes]) -> list[Bytes]:
    start, stop = args
    return [part[start:stop] for part in parts]


def _concatenate_rows(args: tuple[int, ...], parts: list[Bytes]) -> list[Bytes]:
    return [np.concatenate(parts)]


_SHAPES: Final[Mapping[TransformKind, Callable[[tuple[int, ...], Shapes, str], Shapes]]] = {
    TransformKind.ROPE_ROWS_FROM_INTERLEAVED: _same_shape,
    TransformKind.SLICE_ROWS: _sliced_shape,
    TransformKind.CONCAT_ROWS: _concatenated_shape,
}
_MOVES: Final[Mapping[TransformKind, Callable[[tuple[int, ...], list[Bytes]], list[Bytes]]]] = {
    TransformKind.ROPE_ROWS_FROM_INTERLEAVED: _pair_rows,
    TransformKind.SLICE_ROWS: _slice_rows,
    TransformKind.CONCAT_ROWS: _concatenate_rows,
}


def _listed(dtypes: Iterable[DType]) -> str:
    return ", ".join(dtype.name.lower() for dtype in dtypes)
