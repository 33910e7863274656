"""Writes a GGUF v3 file atomically: into a temporary file beside the target, synced, then renamed over it.

Tensors may be made one at a time while the file is written, so that a model need not fit in memory twice.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from treadle.errors import InvalidWeights
from treadle.formats.atomic import atomic_file
from treadle.formats.gguf import DEFAULT_ALIGNMENT, GGML_TYPES, MAGIC, StringArray
from treadle.formats.mapped import Bytes
from treadle.formats.tensors import quantise, tensor_nbytes

__all__ = ["GGUFWriter", "Metadata"]

_NUMBER_OF_DTYPE = {dtype: number for number, dtype in GGML_TYPES.items()}
_NUMBER_OF_SCALAR = {
    "u1": 0,
    "i1": 1,
    "u2": 2,
    "i2": 3,
    "u4": 4,
    "i4": 5,
    "f4": 6,
    "b1": 7,
    "u8": 10,
    "i8": 11,
    "f8": 12,
}
_STRING, _ARRAY = 8, 9

Item = bool | int | float | str | np.generic
Progress = Callable[[int, int], None]
"""Called with (bytes of tensors written, bytes of tensors in all)."""
Metadata = Item | Sequence[Item] | npt.NDArray[np.generic] | StringArray


class GGUFWriter:
    """Collects metadata and tensors, then writes them with ``save``.

    Python ints become u32 (i32 if negative, u64 or i64 if large), floats f32, lists typed arrays; a NumPy scalar or
    array keeps its own type.
    """

    def __init__(self, architecture: str, alignment: int = DEFAULT_ALIGNMENT) -> None:
        self._alignment = alignment
        self._metadata: dict[str, bytes] = {}
        self._tensors: dict[str, tuple[str, tuple[int, ...], Callable[[], Bytes]]] = {}
        self.add("general.architecture", architecture)
        if alignment != DEFAULT_ALIGNMENT:
            self.add("general.alignment", np.uint32(alignment))

    def add(self, key: str, value: Metadata) -> None:
        """Set a metadata key. Raises ValueError for a key given twice or a value that GGUF cannot hold."""
        if key in self._metadata:
            raise ValueError(f"metadata {key}: given twice")
        self._metadata[key] = _encode(key, value)

    def add_encoded(self, key: str, encoded: bytes) -> None:
        """Set a metadata key to a value as another file holds it (GGUFFile.encoded)."""
        if key in self._metadata:
            raise ValueError(f"metadata {key}: given twice")
        self._metadata[key] = encoded

    def add_tensor(self, name: str, values: npt.ArrayLike, dtype: str = "f32") -> None:
        """Add a tensor of real values [out, in], encoded as ``dtype`` by the reference quantiser."""
        array = np.asarray(values, dtype=np.float32)
        self.add_raw(name, quantise(array, dtype), dtype, array.shape)

    def add_raw(self, name: str, raw: Bytes, dtype: str, shape: Sequence[int]) -> None:
        """Add a tensor whose bytes are already encoded. Raises InvalidWeights if their number does not fit."""
        _check_size(name, raw, dtype, shape)
        self.add_made(name, lambda: raw, dtype, shape)

    def add_made(self, name: str, make: Callable[[], Bytes], dtype: str, shape: Sequence[int]) -> None:
        """Add a tensor whose bytes `make` returns when it is written. Raises InvalidWeights for an impossible shape."""
        if name in self._tensors:
            raise ValueError(f"tensor {name}: given twice")
        tensor_nbytes(dtype, shape)
        self._tensors[name] = (dtype, tuple(shape), make)

    def save(self, path: str | os.PathLike[str], progress: Progress | None = None) -> Path:
        """Write the file; either the whole new file is there afterwards or what was there before."""
        with atomic_file(Path(path)) as file:
            self._write(file, progress or (lambda done, total: None))
        return Path(path)

    def _write(self, file: BinaryIO, progress: Progress) -> None:
        file.write(MAGIC + struct.pack("<IQQ", 3, len(self._tensors), len(self._metadata)))
        for key, encoded in self._metadata.items():
            file.write(_text(key) + encoded)
        offset = 0
        for name, (dtype, shape, _) in self._tensors.items():
            dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
            file.write(_text(name) + dimensions + struct.pack("<IQ", _NUMBER_OF_DTYPE[dtype], offset))
            nbytes = tensor_nbytes(dtype, shape)
            offset += nbytes + -nbytes % self._alignment
        done, total = 0, sum(tensor_nbytes(dtype, shape) for dtype, shape, _ in self._tensors.values())
        for name, (dtype, shape, make) in self._tensors.items():
            file.write(bytes(-file.tell() % self._alignment))
            raw = make()
            _check_size(name, raw, dtype, shape)
            file.write(np.ascontiguousarray(raw).data)
            done += raw.nbytes
            progress(done, total)
        file.write(bytes(-file.tell() % self._alignment))


def _check_size(name: str, raw: Bytes, dtype: str, shape: Sequence[int]) -> None:
    if raw.nbytes != tensor_nbytes(dtype, shape):
        raise InvalidWeights(f"tensor {name}: {dtype} {tuple(shape)} does not take {raw.nbytes} bytes")


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _encode(key: str, value: Metadata) -> bytes:
    """Type number and payload of one metadata value."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, StringArray):
        value = value.tolist()
    if isinstance(value, Sequence) and value and all(isinstance(item, str) for item in value):
        items = b"".join(_text(str(item)) for item in value)
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + items
    array = _typed(value)
    if array.dtype.str[1:] not in _NUMBER_OF_SCALAR or array.ndim > 1:
        raise ValueError(f"metadata {key}: GGUF cannot hold {type(value).__name__} of {array.dtype}, rank {array.ndim}")
    number = _NUMBER_OF_SCALAR[array.dtype.str[1:]]
    payload = array.astype(array.dtype.newbyteorder("<")).tobytes()
    if array.ndim == 0:
        return struct.pack("<I", number) + payload
    return struct.pack("<IIQ", _ARRAY, number, array.size) + payload


def _typed(value: Metadata) -> npt.NDArray[np.generic]:
    """A NumPy value as it is; Python numbers in the narrowest customary type."""
    array = np.asarray(value)
    if isinstance(value, np.generic | np.ndarray) or array.dtype.kind not in "iuf":
        return array
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    choices = ["i4", "u4", "i8", "u8"] if array.ndim else ["u4", "i4", "u8", "i8"]
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    return array.astype(next(code for code in choices if np.iinfo(code).min <= low and high <= np.iinfo(code).max))
