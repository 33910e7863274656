"""A read-only memory map of one file: bounds-checked zero-copy views, and giving pages back."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from treadle.errors import InvalidFile, ModelNotFound

__all__ = ["Bytes", "MappedFile"]

Bytes = npt.NDArray[np.uint8]


class MappedFile:
    """The bytes of ``path``, mapped. Views stay valid after ``close`` for as long as somebody holds them.

    The file must not be shortened meanwhile: the system ends a process that reads a mapped page the file has lost.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self.stat = os.fstat(file.fileno())
                self.size = self.stat.st_size
                if self.size == 0:
                    raise InvalidFile(f"{self.path}: the file is empty")
                self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ModelNotFound(f"{self.path}: no such file") from None
        except OSError as error:
            raise InvalidFile(f"{self.path}: cannot be mapped: {error.strerror or error}") from None

    def view(self, offset: int, nbytes: int) -> Bytes:
        """``nbytes`` bytes from ``offset`` as a read-only u8 array over the map (no copy)."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise InvalidFile(f"{self.path}: bytes {offset}..{offset + nbytes}: outside the file of {self.size} bytes")
        if nbytes == 0:
            return np.empty(0, dtype=np.uint8)
        return np.frombuffer(self.buffer, dtype=np.uint8, count=nbytes, offset=offset)

    def drop(self, offset: int, nbytes: int) -> None:
        """Give the whole pages inside the range back to the system; a later read faults them in again."""
        if sys.platform == "win32":
            return
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start and not self.buffer.closed:
            self.buffer.madvise(mmap.MADV_DONTNEED, start, end - start)

    def close(self) -> None:
        """Unmap now, or as soon as the last view is gone."""
        with contextlib.suppress(BufferError):
            self.buffer.close()
