"""One file of packed weights: a header that is checked before anything is believed, then the weight arena as it is.

    8 bytes   magic
    u32, u32  version of this form, length of the JSON that follows (little-endian)
    JSON      `Header`
    32 bytes  SHA-256 of all before
    zeros     up to `DATA_START`
    data      `Header.data_bytes`, to the end of the file

Whoever may write a file can put any weights in it, so only files of this user or root that nobody else may write are
read. Damage by accident is found by the header's hash, the file's length and the data's checksum, each compared before
the data is used. Sizes and addresses come from the plan, never from the file: wrong data gives wrong numbers, no more.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import stat
import struct
import threading
from pathlib import Path
from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

MAGIC: Final = b"TRDL-WTS"
VERSION: Final = 1
DATA_START: Final = 16384
"""A whole page on every system."""
MAX_TEXT: Final = 1000
"""Bytes of a text in the header."""
_PREFIX: Final = struct.Struct("<8sII")
_DIGEST: Final = 32
_CHUNK: Final = 8 << 20
_FOREIGN_WRITERS: Final = stat.S_IWGRP | stat.S_IWOTH

Natural = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]


class Unusable(Exception):
    """A file that is not the one wanted; the message says why, as a sentence that has the file as its subject."""


class Stopped(Exception):
    """Writing was called off."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`packing` and `content` are hex SHA-256 (see `weight_cache`); `model` and `path` are for people."""

    packing: Text
    content: Text
    model: Text
    path: Text
    data_bytes: Natural
    checksum: int


def clipped(text: str) -> str:
    """A name or path as a header takes it."""
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return printable.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")


def write_small(path: Path, data: bytes) -> None:
    """A file of this user alone that appears whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_trusted(path: Path) -> int:
    """A descriptor of a regular file that only this user and root can have written. Raises Unusable, OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Unusable("is a symbolic link") from None
        raise
    try:
        _check_trusted(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_trusted(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Unusable("is no regular file")
    if found.st_uid not in (0, os.geteuid()):
        raise Unusable(f"belongs to user {found.st_uid}")
    if found.st_mode & _FOREIGN_WRITERS:
        raise Unusable(f"may be written by others (mode {stat.S_IMODE(found.st_mode):o})")


def read_header(descriptor: int) -> Header:
    """The header, with the file as long as it says. Raises Unusable."""
    block = os.pread(descriptor, DATA_START, 0)
    if len(block) < DATA_START:
        raise Unusable(f"ends after {len(block)} bytes, inside its header")
    magic, version, length = _PREFIX.unpack_from(block)
    if magic != MAGIC:
        raise Unusable("is no file of packed weights")
    if version != VERSION:
        raise Unusable(f"has form {version}, this version reads {VERSION}")
    end = _PREFIX.size + length
    if end + _DIGEST > DATA_START or hashlib.sha256(block[:end]).digest() != block[end : end + _DIGEST]:
        raise Unusable("has a damaged header")
    try:
        header = msgspec.json.decode(block[_PREFIX.size : end], type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unusable(f"has a header that cannot be read: {error}") from None
    size = os.fstat(descriptor).st_size
    if size != DATA_START + header.data_bytes:
        raise Unusable(f"has {size} bytes instead of {DATA_START + header.data_bytes}")
    return header


def map_data(descriptor: int, header: Header) -> NDArray[np.uint8]:
    """The data, read-only and mapped: [data_bytes], 64-byte aligned, usable when the file is long deleted."""
    region = mmap.mmap(descriptor, DATA_START + header.data_bytes, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_WILLNEED"):
        region.madvise(mmap.MADV_WILLNEED)
    return np.frombuffer(region, dtype=np.uint8, offset=DATA_START)


def write(path: Path, header: Header, data: NDArray[np.uint8], stop: threading.Event) -> None:
    """Makes the file appear whole or not at all, readable by this user alone. Raises OSError, Stopped.

    The temporary file stays locked while it is written, so that `remove_abandoned` tells it from a dead one.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_all(descriptor, memoryview(_encode(header)), stop)
            _write_all(descriptor, data.data, stop)
            os.fsync(descriptor)
            temporary.replace(path)
        finally:
            os.close(descriptor)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _encode(header: Header) -> bytes:
    body = msgspec.json.encode(header)
    block = _PREFIX.pack(MAGIC, VERSION, len(body)) + body
    block += hashlib.sha256(block).digest()
    if len(block) > DATA_START:
        raise ValueError(f"a header of {len(block)} bytes; at most {DATA_START}")
    return block.ljust(DATA_START, b"\0")


def _write_all(descriptor: int, data: memoryview, stop: threading.Event) -> None:
    while data:
        if stop.is_set():
            raise Stopped
        data = data[os.write(descriptor, data[:_CHUNK]) :]


def remove_abandoned(directory: Path) -> None:
    """Deletes temporary files whose writers died."""
    for path in directory.glob(".*.tmp"):
        try:
            descriptor = open_trusted(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
        except (OSError, Unusable):
            continue
