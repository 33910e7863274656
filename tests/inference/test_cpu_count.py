"""The default number of threads, on made-up machines."""

import os
from pathlib import Path

import pytest

from treadle.inference.backends.cpu_count import default_threads

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"


def machine(root: Path, cgroup: str = "", mounts: str = "", files: dict[str, str] | None = None) -> Path:
    every = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, **(files or {})}
    for name, text in every.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def threads(root: Path, cpus: int = 8) -> int:
    return default_threads(root, frozenset(range(cpus)))


def test_nothing_known_counts_the_allowed_cpus(tmp_path: Path) -> None:
    assert threads(tmp_path) == 8
    assert default_threads(tmp_path, frozenset({1, 5, 7})) == 3


def test_siblings_of_a_core_count_once(tmp_path: Path) -> None:
    topology = {f"sys/devices/system/cpu/cpu{i}/topology/core_cpus_list": f"{i % 4},{i % 4 + 4}" for i in range(8)}
    machine(tmp_path, files=topology)
    assert threads(tmp_path) == 4
    assert default_threads(tmp_path, frozenset({0, 4, 5})) == 2


def test_cores_without_siblings_beside_cores_with_them(tmp_path: Path) -> None:
    lists = ["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"]
    topology = {f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": text for i, text in enumerate(lists)}
    assert threads(machine(tmp_path, files=topology)) == 6


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("300000 100000", 3), ("250000 100000", 2), ("50000 100000", 1), ("x y", 8), ("1 0", 8)],
)
def test_version_2(tmp_path: Path, quota: str, expected: int) -> None:
    machine(tmp_path, "0::/a/b", V2_MOUNT, {"sys/fs/cgroup/a/b/cpu.max": quota})
    assert threads(tmp_path) == expected


def test_the_least_quota_of_the_nested_groups_holds(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/a/cpu.max": "200000 100000",
        "sys/fs/cgroup/a/b/cpu.max": "600000 100000",
        "sys/fs/cgroup/other/cpu.max": "100000 100000",
    }
    assert threads(machine(tmp_path, "0::/a/b", V2_MOUNT, files)) == 2


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("400000", 4), ("10000", 1)])
def test_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct/docker/c1"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}
    groups = "4:memory:/elsewhere\n3:cpu,cpuacct:/docker/c1\n0::/"
    assert threads(machine(tmp_path, groups, V1_MOUNT, files)) == expected


def test_a_container_sees_its_own_group_as_the_mount(tmp_path: Path) -> None:
    mount = V2_MOUNT.replace(" / ", " /docker/c1 ", 1)
    files = {"sys/fs/cgroup/cpu.max": "500000 100000", "sys/fs/cgroup/inner/cpu.max": "300000 100000"}
    assert threads(machine(tmp_path, "0::/docker/c1", mount, files)) == 5
    assert threads(machine(tmp_path, "0::/docker/c1/inner", mount, files)) == 3
    assert threads(machine(tmp_path, "0::/docker/c12/inner", mount, files)) == 5
    assert threads(machine(tmp_path, "0::/../inner", V2_MOUNT, files)) == 5


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
def test_this_process_counts_its_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert default_threads() == 1
    finally:
        os.sched_setaffinity(0, before)
