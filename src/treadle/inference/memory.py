"""Arenas: anonymous mapped memory, page aligned, zero, resident only where touched; how much may be allocated,
and how much this process took."""

from __future__ import annotations

import mmap
import resource
import sys
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE: Final = 2 << 20
ALIGNMENT: Final = 64


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to a whole number of 64-byte lines."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def allocate(nbytes: int, *, small_pages: int = 0) -> NDArray[np.uint8]:
    """A zeroed arena of `nbytes` uint8, freed with the last reference to it or to a view of it.

    Large ones ask for huge pages, but not for their first `small_pages` bytes: a huge page is zeroed whole by who first
    touches it, which costs about a millisecond where the machine is virtual.
    """
    if nbytes == 0:
        return np.empty(0, dtype=np.uint8)
    region = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux" and nbytes - small_pages >= 2 * HUGE_PAGE:
        region.madvise(mmap.MADV_HUGEPAGE, small_pages, nbytes - small_pages)
    return np.frombuffer(region, dtype=np.uint8)


def available_bytes() -> int | None:
    """Bytes that this process may still allocate: the least of free RAM and the cgroup's room. None if unknown."""
    known = [value for value in (_meminfo_available(), _cgroup_available()) if value is not None]
    return min(known) if known else None


def peak_rss_bytes() -> int:
    """The most memory that was resident at once.

    Linux's ru_maxrss also counts what the parent held when it started this process, so VmHWM is read instead.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _meminfo_available(path: Path = Path("/proc/meminfo")) -> int | None:
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_available(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Room under a cgroup v2 limit, else v1. Clean file cache is counted as room: the kernel takes it back."""
    for limit_name, usage_name, stat_name in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        limit, usage = _number(root / limit_name), _number(root / usage_name)
        if limit is not None and usage is not None:
            return max(0, limit - usage + _stat(root / stat_name, "inactive_file"))
    return None


def _number(path: Path) -> int | None:
    """The number in a one-line file; None where there is no file or no limit ("max")."""
    if not path.exists():
        return None
    text = path.read_text().strip()
    return int(text) if text.isdigit() else None


def _stat(path: Path, key: str) -> int:
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0
