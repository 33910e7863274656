"""Packed weights kept on disk, so that the second start of a model maps them instead of packing again.

A file is named by what it holds: the content of the model's files (SHA-256 of every byte) and the packing (the plan's
weights, their types, and what the backend, and the quantiser if there is one, make of a small pattern: changed code
gives another name by itself). ISA, threads, numeric mode, KV type and step limits do not change packed bytes and are in
no name.

Reading gigabytes to find a name would cost more than packing, so a start looks the content up: `sources.json` remembers
the hash of a file by path, inode, size, mtime and ctime. A file changed in place gets another ctime, which no program
can set back; a file younger than a clock tick, whose next change might get the same one, is not remembered. A model
that was moved is packed once more and then found to be there.

Files are written by a thread of its own while the model already runs. Nothing here ever fails a load: what cannot be
used or kept costs one line of notice (logger "treadle") and the time to pack.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidRequest
from treadle.inference.weight_file import (
    Header,
    Stopped,
    Unusable,
    clipped,
    map_data,
    open_trusted,
    read_header,
    remove_abandoned,
    write,
    write_small,
)

LIMIT_VARIABLE: Final = "TREADLE_CACHE_LIMIT"
DEFAULT_LIMIT: Final = 20 << 30
INDEX_NAME: Final = "sources.json"
SUFFIX: Final = ".weights"
MAX_SOURCES: Final = 1024
_MAX_INDEX_BYTES: Final = 4 << 20
_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_TICK_NS: Final = 20_000_000
"""File times advance with the kernel's timer, every 1 to 10 ms."""
_COARSE_TICK_NS: Final = 2_000_000_000
"""... or by whole seconds on some file systems."""
_CHUNK: Final = 8 << 20

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that weights are packed from, as it was when it was opened."""

    path: Path
    stat: os.stat_result

    @property
    def identity(self) -> tuple[str, int, int, int, int]:
        s = self.stat
        return (str(self.path.resolve()), s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)

    @property
    def settled(self) -> bool:
        """Whether any later change will show in the ctime."""
        coarse = self.stat.st_ctime_ns % 1_000_000_000 == 0
        return time.time_ns() - self.stat.st_ctime_ns > (_COARSE_TICK_NS if coarse else _TICK_NS)

    def unchanged(self, now: os.stat_result) -> bool:
        return self.identity[1:] == (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class CachedWeights:
    """One file of the cache. `problem`: why it cannot be used, empty if it looks sound."""

    file: Path
    model: str
    path: str
    nbytes: int
    last_use: float
    """Seconds since 1970."""
    problem: str = ""


class _Source(msgspec.Struct, frozen=True):
    content: str
    seen: int


class WeightCache:
    """A folder of packed weights, of at most `limit` bytes. Several processes may use it at once."""

    def __init__(self, directory: Path, limit: int | None = None) -> None:
        """`limit` None: 20 GiB, or half of what the disk has free beside it if that is less."""
        self.directory = directory
        self._limit = limit

    @property
    def off(self) -> bool:
        return self._limit == 0

    def entries(self) -> list[CachedWeights]:
        """What there is, last used first."""
        found = [entry for path in self.directory.glob(f"*{SUFFIX}") if (entry := _described(path)) is not None]
        return sorted(found, key=lambda entry: entry.last_use, reverse=True)

    def clear(self) -> list[CachedWeights]:
        """Deletes everything; who has a file mapped keeps it. Returns what was there. Raises OSError."""
        entries = self.entries()
        for entry in entries:
            entry.file.unlink(missing_ok=True)
        (self.directory / INDEX_NAME).unlink(missing_ok=True)
        remove_abandoned(self.directory)
        return entries

    def limit_bytes(self) -> int:
        if self._limit is not None:
            return self._limit
        disk = os.statvfs(next(path for path in (self.directory, *self.directory.parents) if path.exists()))
        held = sum(entry.nbytes for entry in self.entries())
        return min(DEFAULT_LIMIT, (disk.f_bavail * disk.f_frsize + held) // 2)

    def make_room(self, nbytes: int, path: Path) -> None:
        """Deletes what was not used for longest until a file of `nbytes` fits at `path`. Raises Unusable, OSError."""
        remove_abandoned(self.directory)
        limit = self.limit_bytes()
        if nbytes > limit:
            raise Unusable(f"would take {nbytes} bytes; the limit is {limit} ({LIMIT_VARIABLE} sets it)")
        others = [entry for entry in self.entries() if entry.file != path]
        held = sum(entry.nbytes for entry in others)
        while held + nbytes > limit:
            oldest = others.pop()
            oldest.file.unlink(missing_ok=True)
            held -= oldest.nbytes

    def path_of(self, content: str, packing: str) -> Path:
        return self.directory / (hashlib.sha256(f"{content} {packing}".encode()).hexdigest()[:40] + SUFFIX)

    def content_of(self, source: str) -> str | None:
        """The content hash remembered for a source, if any. Raises Unusable, OSError."""
        known = self._sources().get(source)
        return None if known is None else known.content

    def known_content(self, source: str) -> str | None:
        """As `content_of`; None also where the index cannot be read."""
        try:
            return None if self.off else self.content_of(source)
        except (Unusable, OSError):
            return None

    def remember(self, source: str, content: str) -> None:
        """Raises OSError. Of two processes that remember at once one may be forgotten, which costs one packing."""
        try:
            sources = self._sources()
        except Unusable:
            sources = {}
        sources[source] = _Source(content, time.time_ns())
        newest = sorted(sources.items(), key=lambda item: item[1].seen)[-MAX_SOURCES:]
        write_small(self.directory / INDEX_NAME, msgspec.json.encode(dict(newest)))

    def _sources(self) -> dict[str, _Source]:
        try:
            descriptor = open_trusted(self.directory / INDEX_NAME)
        except FileNotFoundError:
            return {}
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(_MAX_INDEX_BYTES)
        try:
            return msgspec.json.decode(data, type=dict[str, _Source])
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Unusable("is damaged") from None


class Place:
    """Where one model's packed weights are, or will be, in a cache."""

    def __init__(
        self,
        cache: WeightCache,
        model: str,
        files: Sequence[SourceFile],
        packing: str,
        checksum: Callable[[Bytes], int],
    ) -> None:
        """`files`: what the weights are packed from; `packing`: names what quantising and packing make of them."""
        self._cache = cache
        self._model = model
        self._files = tuple(files)
        self._packing = _sha256(packing.encode())
        self._checksum = checksum
        self._source = source_name(files)
        self._settled = all(file.settled for file in files)
        self._stop = threading.Event()
        self._writer: threading.Thread | None = None
        self._damaged: Path | None = None

    def find(self, nbytes: int) -> Bytes | None:
        """The weights, mapped read-only, [nbytes]; None if they are to be packed."""
        where = self._cache.directory / INDEX_NAME
        try:
            content = self._cache.content_of(self._source)
            if content is None:
                return None
            where = self._cache.path_of(content, self._packing)
            return self._mapped(where, content, nbytes)
        except FileNotFoundError:
            return None
        except (Unusable, OSError) as error:
            self._damaged = where
            _notice(f"{where} {_reason(error)}; packing the weights again")
            return None

    def _mapped(self, path: Path, content: str, nbytes: int) -> Bytes:
        descriptor = open_trusted(path)
        try:
            header = read_header(descriptor)
            if (header.content, header.packing, header.data_bytes) != (content, self._packing, nbytes):
                raise Unusable(f"holds the weights of another model ({header.model})")
            data = map_data(descriptor, header)
            if self._checksum(data) != header.checksum:
                raise Unusable("has damaged weights")
            _touch(descriptor)
            return data
        finally:
            os.close(descriptor)

    def keep(self, weights: Bytes) -> None:
        """Writes packed weights, which stay as they are, from a thread of its own; `finish` waits for it.

        `checksum` is called here, before the first step.
        """
        if self._settled:
            checksum = self._checksum(weights)
            self._writer = threading.Thread(target=self._keep, args=(weights, checksum), name="treadle-weight-cache")
            self._writer.start()

    def finish(self, abandon: bool = False) -> None:
        """Returns when the weights are written; with `abandon` soon, and they may not be."""
        if self._writer is None:
            return
        if abandon:
            self._stop.set()
        try:
            self._writer.join()
        except KeyboardInterrupt:
            self._stop.set()
            self._writer.join()
            raise
        self._writer = None

    def _keep(self, weights: Bytes, checksum: int) -> None:
        try:
            self._cache.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = content_name(self._files, self._stop)
            path = self._cache.path_of(content, self._packing)
            if path == self._damaged or not _is_sound(path):
                self._cache.make_room(weights.nbytes, path)
                header = Header(
                    packing=self._packing,
                    content=content,
                    model=clipped(self._model),
                    path=clipped(str(self._files[0].path.resolve())),
                    data_bytes=weights.nbytes,
                    checksum=checksum,
                )
                write(path, header, weights, self._stop)
            self._cache.remember(self._source, content)
        except Stopped:
            pass
        except (Unusable, OSError) as error:
            _notice(f"{self._cache.directory}: the packed weights of {self._model} were not kept: {_reason(error)}")


def source_name(files: Sequence[SourceFile]) -> str:
    """Names files as they are on this disk, without reading them."""
    return _sha256(repr([file.identity for file in files]).encode())


def content_name(files: Sequence[SourceFile], stop: threading.Event | None = None) -> str:
    """Names what is in files, hex SHA-256. Raises Unusable where one changed meanwhile, Stopped, OSError."""
    return _sha256(*(_content(file, stop or threading.Event()) for file in files))


def packing_name(layout: Iterable[tuple[msgspec.Struct, int, int]], packing: str) -> str:
    """Names the bytes of a weight arena: (binding, stored dtype, bytes) of every weight in order, and the backend's
    own name for its packing."""
    return _sha256(msgspec.msgpack.encode(list(layout)), packing.encode())


def limit_from(text: str) -> int:
    """Bytes of "20GB", "500 MB" or "0". Raises InvalidRequest."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,3})?)\s*([kmgt]?)b?\s*", text, re.IGNORECASE)
    if match is None:
        raise InvalidRequest(f"{LIMIT_VARIABLE} must be a size such as 20GB (0 switches the cache off), found {text!r}")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _content(file: SourceFile, stop: threading.Event) -> bytes:
    """SHA-256 of a source file. Raises Unusable if it is no longer the file that was packed."""
    found = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    with file.path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            if stop.is_set():
                raise Stopped
            found.update(memoryview(buffer)[:count])
        if not file.unchanged(os.fstat(stream.fileno())):
            raise Unusable(f"{file.path} changed meanwhile")
    return found.digest()


def _is_sound(path: Path) -> bool:
    """Whether another process wrote the file, or an earlier one under another source path."""
    try:
        descriptor = open_trusted(path)
        try:
            read_header(descriptor)
            _touch(descriptor)
        finally:
            os.close(descriptor)
    except (Unusable, OSError):
        return False
    return True


def _described(path: Path) -> CachedWeights | None:
    """None for a file that has just gone."""
    try:
        found = path.lstat()
    except OSError:
        return None
    try:
        descriptor = open_trusted(path)
        try:
            header = read_header(descriptor)
        finally:
            os.close(descriptor)
    except (Unusable, OSError) as error:
        return CachedWeights(path, "", "", found.st_size, found.st_mtime, _reason(error))
    return CachedWeights(path, header.model, header.path, found.st_size, found.st_mtime)


def _touch(descriptor: int) -> None:
    """Last use is the file's mtime. A cache that may only be read has none."""
    with contextlib.suppress(OSError):
        os.utime(descriptor)


def _sha256(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def _reason(error: Exception) -> str:
    return f"cannot be used: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def _notice(text: str) -> None:
    import logging

    logging.getLogger("treadle").warning("weight cache: %s", text)
