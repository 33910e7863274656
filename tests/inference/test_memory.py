"""What may still be allocated, from what the system says."""

from __future__ import annotations

import numpy as np
import pytest

from treadle.inference.memory import _cgroup_available, _meminfo_available, aligned, allocate, available_bytes


def test_arenas_are_zero_aligned_and_writable():
    for nbytes in (1, 4096, 5 << 20):
        arena = allocate(nbytes)
        assert arena.dtype == np.uint8 and arena.nbytes == nbytes
        assert arena.ctypes.data % 4096 == 0
        assert not arena.any()
        arena[-1] = 7
        assert arena[-1] == 7
    assert allocate(0).nbytes == 0


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
