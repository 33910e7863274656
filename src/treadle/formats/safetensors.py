"""safetensors reader over mmap, one file or a sharded index, zero copy for every dtype incl. bf16.

Format: https://github.com/huggingface/safetensors#format. A header is accepted only if its tensors cover the data
section exactly: no overlap, no hole, nothing past the end.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Annotated, Any, Self

import msgspec

from treadle.errors import InvalidFile, InvalidWeights, ModelNotFound, UnsupportedModel
from treadle.formats.json_file import parse_json, read_bounded
from treadle.formats.mapped import Bytes, MappedFile
from treadle.formats.tensors import PLAIN_DTYPES, Container, TensorInfo

__all__ = ["INDEX_NAME", "SINGLE_NAME", "SafetensorsFile"]

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER_BYTES = 8 << 20  # some 60,000 tensors in one file
MAX_INDEX_BYTES = 16 << 20
MAX_SHARDS = 4096
MAX_RANK = 8

# dtype in the header -> canonical name
DTYPES: Mapping[str, str] = MappingProxyType(
    {name.upper(): name for name in PLAIN_DTYPES} | {"F8_E4M3": "f8_e4m3", "F8_E5M2": "f8_e5m2", "F8_E8M0": "f8_e8m0"}
)

_Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """One tensor of a header; ``data_offsets`` are relative to the data section."""

    dtype: str
    shape: Annotated[list[_Natural], msgspec.Meta(max_length=MAX_RANK)]
    data_offsets: tuple[_Natural, _Natural]


class _Index(msgspec.Struct):
    """The part of an index file that is used: tensor name -> file name."""

    weight_map: dict[str, str]


class SafetensorsFile:
    """The tensors of a checked safetensors checkpoint. A ``TensorSource``; also a context manager.

    ``tensors`` by name; ``metadata`` is the ``__metadata__`` of the file (of the first shard), strings only.
    """

    container: Container = "safetensors"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """``path``: a .safetensors file, an index .json, or a directory that holds either under its usual name.

        Raises ModelNotFound, InvalidFile (damaged) or UnsupportedModel (unknown dtype).
        """
        self.path = Path(path)
        self._files: list[MappedFile] = []
        try:
            self.metadata, self.tensors = self._open(_resolve(self.path))
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        return cls(path)

    @property
    def files(self) -> tuple[MappedFile, ...]:
        return tuple(self._files)

    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise InvalidWeights(f"{self.path}: no tensor {name!r}")
        return self.tensors[name]

    def raw(self, name: str) -> Bytes:
        info = self.info(name)
        return self._files[info.part].view(info.offset, info.nbytes)

    def drop(self, name: str) -> None:
        info = self.info(name)
        self._files[info.part].drop(info.offset, info.nbytes)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self, path: Path) -> tuple[Mapping[str, str], Mapping[str, TensorInfo]]:
        if path.suffix != ".json":
            metadata, tensors = self._add_file(path)
            return MappingProxyType(metadata), MappingProxyType(tensors)
        metadata = {}
        tensors = {}
        for shard, expected in sorted(_read_index(path).items()):
            shard_metadata, found = self._add_file(path.parent / shard)
            _compare_names(path, shard, expected, found.keys())
            metadata = metadata or shard_metadata
            tensors.update(found)
        return MappingProxyType(metadata), MappingProxyType(tensors)

    def _add_file(self, path: Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
        file = MappedFile(path)
        self._files.append(file)
        return _read_header(file, len(self._files) - 1)


def _resolve(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (INDEX_NAME, SINGLE_NAME):
        if (path / name).is_file():
            return path / name
    raise ModelNotFound(f"{path}: neither {SINGLE_NAME} nor {INDEX_NAME} in it")


def _read_index(path: Path) -> dict[str, set[str]]:
    """File name -> names of the tensors in it, from an index file; a file name may not leave the directory."""
    data = read_bounded(path, MAX_INDEX_BYTES)
    try:
        weight_map = msgspec.json.decode(data, type=_Index).weight_map
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidFile(f"{path}: {error}") from None
    parse_json(data, str(path), max_depth=4)  # for the repeated keys that the typed decoder lets pass
    if not weight_map:
        raise InvalidFile(f"{path}: weight_map: expected tensor names, found none")
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not shard.endswith(".safetensors") or set(shard) & set("/\\\0"):
            raise InvalidFile(f"{path}: weight_map.{name}: expected a .safetensors file name, found {shard!r:.80}")
        shards.setdefault(shard, set()).add(name)
    if len(shards) > MAX_SHARDS:
        raise InvalidFile(f"{path}: weight_map: expected at most {MAX_SHARDS} files, found {len(shards)}")
    return shards


def _compare_names(index: Path, shard: str, expected: set[str], found: Any) -> None:
    for name in expected - found:
        raise InvalidFile(f"{index}: weight_map.{name}: {shard} has no such tensor")
    for name in found - expected:
        raise InvalidFile(f"{index}: {shard} holds tensor {name!r}, which weight_map does not place there")


def _read_header(file: MappedFile, part: int) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    if file.size < 8:
        raise InvalidFile(f"{file.path}: header length: expected 8 bytes, found {file.size}")
    length: int = struct.unpack_from("<Q", file.buffer)[0]
    most = min(MAX_HEADER_BYTES, file.size - 8)
    if length > most:
        raise InvalidFile(f"{file.path}: header length: expected at most {most}, found {length}")
    header = file.buffer[8 : 8 + length]
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(entries.pop("__metadata__", b"{}"), type=dict[str, str])
        typed = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidFile(f"{file.path}: header: {error}") from None
    parse_json(header, f"{file.path}: header", max_depth=4)  # for the repeated keys that the typed decoder lets pass
    tensors = {name: _place(file, part, name, entry, 8 + length) for name, entry in typed.items()}
    _check_cover(file, list(tensors.values()), 8 + length)
    return metadata, tensors


def _place(file: MappedFile, part: int, name: str, entry: _Entry, data_start: int) -> TensorInfo:
    field = f"{file.path}: tensor {name!r}"
    if entry.dtype not in DTYPES:
        raise UnsupportedModel(f"{field}: dtype {entry.dtype!r} is not known")
    dtype = DTYPES[entry.dtype]
    begin, end = entry.data_offsets
    nbytes = math.prod(entry.shape) * PLAIN_DTYPES[dtype].itemsize
    if end - begin != nbytes:
        raise InvalidFile(
            f"{field}: {entry.dtype} {entry.shape} takes {nbytes} bytes, found data_offsets {begin}..{end}"
        )
    return TensorInfo(name, dtype, tuple(entry.shape), data_start + begin, nbytes, part)


def _check_cover(file: MappedFile, infos: list[TensorInfo], data_start: int) -> None:
    """Laid out by offset, the tensors must fill the data section without hole or overlap."""
    position = data_start
    for info in sorted(infos, key=lambda info: (info.offset, info.nbytes)):
        if info.offset != position:
            kind = "a hole" if info.offset > position else "an overlap"
            at, expected = info.offset - data_start, position - data_start
            raise InvalidFile(f"{file.path}: tensor {info.name!r}: {kind}: expected to start at {expected}, found {at}")
        position += info.nbytes
    if position != file.size:
        found = file.size - data_start
        raise InvalidFile(f"{file.path}: data: expected {position - data_start} bytes, found {found}")
