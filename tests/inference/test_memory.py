"""What may still be allocated, from what the system says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from treadle.inference.memory import (
    HUGE_PAGE,
    _cgroup_available,
    _meminfo_available,
    aligned,
    allocate,
    available_bytes,
)


def test_arenas_are_zero_aligned_and_writable():
    for nbytes in (1, 4096, 5 << 20):
        arena = allocate(nbytes)
        assert arena.dtype == np.uint8 and arena.nbytes == nbytes
        assert arena.ctypes.data % 4096 == 0
        assert not arena.any()
        arena[-1] = 7
        assert arena[-1] == 7
    assert allocate(0).nbytes == 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_huge_pages_are_asked_for_behind_the_small_ones():
    """`hg` among VmFlags: the kernel was advised to take huge pages (proc(5))."""
    arena = allocate(8 * HUGE_PAGE, small_pages=HUGE_PAGE)
    begin = arena.ctypes.data
    assert [_advised(begin + at) for at in (0, HUGE_PAGE - 1, HUGE_PAGE, arena.nbytes - 1)] == [
        False,
        False,
        True,
        True,
    ]
    whole, little = allocate(8 * HUGE_PAGE), allocate(HUGE_PAGE)
    assert _advised(whole.ctypes.data) and not _advised(little.ctypes.data)


def _advised(address: int) -> bool:
    covers = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            covers = int(found[1], 16) <= address < int(found[2], 16)
        elif covers and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError(f"{address:#x} is not mapped")


def test_aligned():
    assert [aligned(n) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]


def test_meminfo(tmp_path):
    path = tmp_path / "meminfo"
    assert _meminfo_available(path) is None
    path.write_text("MemTotal:  100 kB\nMemAvailable:     42 kB\n")
    assert _meminfo_available(path) == 42 * 1024


@pytest.mark.parametrize(
    ("limit", "usage", "stat"),
    [
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ],
)
def test_cgroup_room_counts_clean_file_cache(tmp_path, limit, usage, stat):
    (tmp_path / "memory").mkdir()
    assert _cgroup_available(tmp_path) is None
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / usage).write_text("700\n")
    assert _cgroup_available(tmp_path) == 300
    (tmp_path / stat).write_text("anon 500\ninactive_file 150\nactive_file 50\n")
    assert _cgroup_available(tmp_path) == 450
    (tmp_path / usage).write_text("1700\n")
    assert _cgroup_available(tmp_path) == 0


def test_no_cgroup_limit_is_no_bound(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert _cgroup_available(tmp_path) is None


def test_this_machine_has_some():
    room = available_bytes()
    assert room is None or room > 1 << 20
