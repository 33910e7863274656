"""GGUF v2 and v3 reader over mmap: every count, length, type, offset and name is checked before it is used.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, little-endian. Vocabularies (string arrays) are only
stepped over when the file is opened; they are decoded when somebody asks for their items.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, repeat
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NoReturn, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from treadle.errors import InvalidFile, InvalidWeights, UnsupportedModel
from treadle.formats.mapped import Bytes, MappedFile
from treadle.formats.tensors import BLOCK_SIZES, Container, TensorInfo

__all__ = ["GGML_TYPES", "GGUFFile", "StringArray", "Value"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_NAME_BYTES = 65535  # keys, by the specification; ggml itself keeps tensor names under 64
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4
MAX_NESTED_ARRAYS = 4096  # arrays inside arrays, in the whole file
MAX_STRINGS = 2_000_000  # items of string arrays in the whole file; the largest vocabularies have 0.9 M with merges
MAX_METADATA = 32768
MAX_TENSORS = 32768
MIN_METADATA_BYTES = 8 + 4 + 1  # key length, type, smallest value
MIN_TENSOR_BYTES = 8 + 4 + 4 + 8  # name length, rank, type, offset

# ggml_type number -> canonical name
GGML_TYPES: Mapping[int, str] = MappingProxyType(
    {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 9: "q8_1"}
    | {10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 15: "q8_k"}
    | {16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs"}
    | {24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 29: "iq1_m", 30: "bf16"}
    | {34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4", 41: "q1_0"}
)

# metadata value type number -> NumPy dtype of the scalars
_SCALARS: dict[int, np.dtype[np.generic]] = {
    number: np.dtype(code)
    for number, code in {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"}.items()
} | {10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8")}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class StringArray:
    """A checked array of strings that stays encoded in the map until asked for. ``tolist()`` decodes all of it."""

    def __init__(self, field: str, encoded: Bytes, starts: npt.NDArray[np.intp]) -> None:
        """`starts`: where in `encoded` each item's length stands, 8 bytes before its text."""
        self._field = field
        self._encoded = encoded
        self._starts = starts
        self._count = len(starts)

    @classmethod
    def of(cls, field: str, items: Sequence[str]) -> Self:
        """As a file would hold the items."""
        raw = [item.encode() for item in items]
        encoded = b"".join(len(text).to_bytes(8, "little") + text for text in raw)
        starts = np.cumsum([0, *(8 + len(text) for text in raw)], dtype=np.intp)[:-1]
        return cls(field, np.frombuffer(encoded, np.uint8), starts)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __getitem__(self, index: int) -> str:
        return self.tolist()[index]

    def __repr__(self) -> str:
        return f"StringArray({self._field}, {self._count} items)"

    def tolist(self) -> list[str]:
        """All items. Raises InvalidFile if one is not UTF-8."""
        marked = self._encoded.copy()  # each length as one NUL: then one decoding and one split give all items
        marked[self._starts] = 0
        kept = np.ones(len(marked), bool)
        for byte in range(1, 8):
            kept[self._starts + byte] = False
        marked = marked[kept]
        if len(marked) - np.count_nonzero(marked) == self._count:
            with contextlib.suppress(UnicodeDecodeError):
                return marked.tobytes().decode().split("\0")[1:]
        return self._one_by_one()

    def _one_by_one(self) -> list[str]:
        """The items where one holds a NUL or is not UTF-8."""
        items: list[str] = []
        data = self._encoded.tobytes()
        try:
            for start, end in pairwise([*self._starts.tolist(), len(data)]):
                items.append(data[start + 8 : end].decode())
        except UnicodeDecodeError as error:
            raise InvalidFile(f"metadata {self._field}[{len(items)}]: expected UTF-8, found {error.object!r}") from None
        return items


Value: TypeAlias = bool | int | float | str | npt.NDArray[np.generic] | StringArray | tuple["Value", ...]


class GGUFFile:
    """A mapped GGUF file: ``metadata`` by key, ``tensors`` by name. A ``TensorSource``; also a context manager.

    Metadata scalars are Python values; numeric arrays are read-only NumPy views of the map; string arrays are
    ``StringArray``; arrays of arrays are tuples. All but tuples have ``tolist()``.
    """

    container: Container = "gguf"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map and check ``path``. Raises ModelNotFound, InvalidFile (damaged) or UnsupportedModel (newer types)."""
        self._file = MappedFile(path)
        self.path: Path = self._file.path
        try:
            parser = _Parser(self._file)
            self.version = parser.version
            self.metadata: Mapping[str, Value] = MappingProxyType(parser.metadata)
            self._spans = parser.spans
            self.alignment = parser.alignment
            self.tensors: Mapping[str, TensorInfo] = MappingProxyType(parser.tensors)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        return cls(path)

    @property
    def files(self) -> tuple[MappedFile, ...]:
        return (self._file,)

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    def text(self, key: str) -> str:
        """The string under ``key``. Raises InvalidFile if it is missing or not a string."""
        value = self.metadata.get(key)
        if not isinstance(value, str):
            found = "nothing" if value is None else type(value).__name__
            raise InvalidFile(f"{self.path}: metadata {key}: expected a string, found {found}")
        return value

    def encoded(self, key: str) -> bytes:
        """A metadata value as the file holds it: type number and payload."""
        start, end = self._spans[key]
        return self._file.view(start, end - start).tobytes()

    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise InvalidWeights(f"{self.path}: no tensor {name!r}")
        return self.tensors[name]

    def raw(self, name: str) -> Bytes:
        info = self.info(name)
        return self._file.view(info.offset, info.nbytes)

    def drop(self, name: str) -> None:
        info = self.info(name)
        self._file.drop(info.offset, info.nbytes)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Parser:
    """Walks the header once, front to back; ``_at`` is the position of the next unread byte."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._at = 0
        self._strings_left = MAX_STRINGS
        self._nested_left = MAX_NESTED_ARRAYS
        self.version = self._read_version()
        tensor_count = self._count("tensor_count", MIN_TENSOR_BYTES, MAX_TENSORS)
        metadata_count = self._count("metadata_kv_count", MIN_METADATA_BYTES, MAX_METADATA)
        self.spans: dict[str, tuple[int, int]] = {}  # of each metadata value: where its type number and payload lie
        self.metadata = self._read_metadata(metadata_count)
        self.alignment = self._check_alignment()
        self._refuse_split()
        self.tensors = self._read_tensors(tensor_count)

    def _fail(self, field: str, found: object, expected: str) -> NoReturn:
        raise InvalidFile(f"{self._file.path}: {field}: expected {expected}, found {found}")

    def _advance(self, nbytes: int, field: str) -> int:
        """Claim the next ``nbytes`` bytes; returns where they start."""
        start = self._at
        if nbytes > self._file.size - start:
            self._fail(field, f"{self._file.size - start} left at byte {start}", f"{nbytes} bytes")
        self._at = start + nbytes
        return start

    def _u32(self, field: str) -> int:
        value: int = _U32.unpack_from(self._file.buffer, self._advance(4, field))[0]
        return value

    def _u64(self, field: str) -> int:
        value: int = _U64.unpack_from(self._file.buffer, self._advance(8, field))[0]
        return value

    def _count(self, field: str, min_bytes: int, most: int) -> int:
        """A count of things that take at least ``min_bytes`` each, so that no loop outruns the file."""
        count = self._u64(field)
        room = (self._file.size - self._at) // min_bytes
        if count > room:
            self._fail(field, count, f"at most {room}, what the file has room for")
        if count > most:
            self._fail(field, count, f"at most {most}")
        return count

    def _text(self, field: str, most: int) -> str:
        length = self._u64(field)
        if length > most:
            self._fail(f"{field} length", length, f"at most {most}")
        start = self._advance(length, field)
        encoded = self._file.buffer[start : self._at]
        try:
            return encoded.decode()
        except UnicodeDecodeError:
            self._fail(field, encoded[:40], "UTF-8")

    def _read_version(self) -> int:
        start = self._advance(4, "magic")
        magic = self._file.buffer[start : self._at]
        if magic != MAGIC:
            self._fail("magic", magic, str(MAGIC))
        version = self._u32("version")
        if version and version & 0xFFFF == 0:
            raise UnsupportedModel(f"{self._file.path}: a big-endian GGUF file; only little-endian is supported")
        if version not in VERSIONS:
            raise UnsupportedModel(f"{self._file.path}: GGUF version {version}; supported: {VERSIONS}")
        return version

    def _read_metadata(self, count: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for number in range(count):
            key = self._text(f"metadata key {number}", MAX_NAME_BYTES)
            if key in metadata:
                self._fail(f"metadata key {number}", f"{key!r} again", "each key once")
            start = self._at
            metadata[key] = self._value(key, self._u32(f"metadata {key} type"))
            self.spans[key] = (start, self._at)
        return metadata

    def _value(self, key: str, kind: int) -> Value:
        field = f"metadata {key}"
        if kind == _STRING:
            return self._text(field, self._file.size)
        if kind == _ARRAY:
            return self._array(key, depth=1)
        if kind not in _SCALARS:
            self._fail(f"{field} type", kind, "0..12")
        return self._numbers(field, kind, 1)[0].item()  # type: ignore[no-any-return]

    def _array(self, key: str, depth: int) -> Value:
        field = f"metadata {key}"
        kind = self._u32(f"{field} item type")
        count = self._u64(f"{field} length")
        if kind == _STRING:
            return self._string_array(key, count)
        if kind == _ARRAY:
            if depth == MAX_ARRAY_DEPTH:
                self._fail(field, f"arrays nested more than {depth} deep", "no deeper")
            self._nested_left -= count
            if self._nested_left < 0:
                self._fail(f"{field} length", count, f"at most {MAX_NESTED_ARRAYS} arrays inside arrays in a file")
            return tuple(self._array(key, depth + 1) for _ in range(count))
        if kind not in _SCALARS:
            self._fail(f"{field} item type", kind, "0..12")
        return self._numbers(field, kind, count)

    def _numbers(self, field: str, kind: int, count: int) -> npt.NDArray[np.generic]:
        dtype = _SCALARS[kind]
        nbytes = count * dtype.itemsize
        raw = self._file.view(self._advance(nbytes, field), nbytes)
        if kind == _BOOL and (raw > 1).any():
            self._fail(field, int(raw.max()), "booleans 0 or 1")
        return raw.view(dtype)

    def _string_array(self, key: str, count: int) -> StringArray:
        """Step from length to length; a length that leaves the file makes the next read, or the last check, fail."""
        field = f"metadata {key}"
        self._strings_left -= count
        if self._strings_left < 0:
            self._fail(f"{field} length", count, f"at most {MAX_STRINGS} array strings in a file")
        buffer, length_at = self._file.buffer, _U64.unpack_from
        starts = array("q")
        note = starts.append
        start = position = self._at
        try:
            for _ in repeat(None, count):
                note(position)
                position += 8 + length_at(buffer, position)[0]
        except (struct.error, OverflowError, IndexError):
            position = self._file.size + 1
        self._advance(position - start, field)
        return StringArray(key, self._file.view(start, position - start), np.array(starts, np.intp) - start)

    def _check_alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            self._fail("general.alignment", repr(alignment), "a power of two")
        return alignment

    def _refuse_split(self) -> None:
        parts = self.metadata.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise UnsupportedModel(f"{self._file.path}: one of {parts} parts (split.count); merge the parts first")

    def _read_tensors(self, count: int) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for number in range(count):
            name = self._text(f"tensor {number} name", MAX_NAME_BYTES)
            if name in tensors:
                self._fail(f"tensor {number} name", f"{name!r} again", "each name once")
            tensors[name] = self._tensor_info(name)
        data_start = -(-self._at // self.alignment) * self.alignment
        placed = {name: self._place(info, data_start) for name, info in tensors.items()}
        self._check_overlaps(list(placed.values()))
        return placed

    def _tensor_info(self, name: str) -> TensorInfo:
        """One tensor info, ``offset`` still relative to the data section."""
        field = f"tensor {name!r}"
        rank = self._u32(f"{field} rank")
        if not 1 <= rank <= MAX_DIMENSIONS:
            self._fail(f"{field} rank", rank, f"1..{MAX_DIMENSIONS}")
        shape = tuple(self._u64(f"{field} dimension") for _ in range(rank))[::-1]
        if 0 in shape:
            self._fail(f"{field} shape", shape, "dimensions of at least 1")
        number = self._u32(f"{field} type")
        offset = self._u64(f"{field} offset")
        if number not in GGML_TYPES:
            raise UnsupportedModel(f"{self._file.path}: {field}: ggml type {number} is not known")
        dtype = GGML_TYPES[number]
        elements, size = BLOCK_SIZES[dtype]
        if shape[-1] % elements:
            self._fail(f"{field} shape", shape, f"a last axis in multiples of {elements} for {dtype}")
        if offset % self.alignment:
            self._fail(f"{field} offset", offset, f"a multiple of the alignment {self.alignment}")
        return TensorInfo(name, dtype, shape, offset, math.prod(shape) // elements * size)

    def _place(self, info: TensorInfo, data_start: int) -> TensorInfo:
        start = data_start + info.offset
        if start + info.nbytes > self._file.size:
            found = f"bytes {start}..{start + info.nbytes}"
            self._fail(f"tensor {info.name!r} data", found, f"inside the file of {self._file.size} bytes")
        return TensorInfo(info.name, info.dtype, info.shape, start, info.nbytes)

    def _check_overlaps(self, infos: list[TensorInfo]) -> None:
        infos.sort(key=lambda info: info.offset)
        for before, after in pairwise(infos):
            if before.offset + before.nbytes > after.offset:
                self._fail(f"tensor {after.name!r} data", f"an overlap with {before.name!r}", "tensors apart")
