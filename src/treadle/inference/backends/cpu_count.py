"""How many threads the machine has room for: affinity, physical cores and the CPU quotas of cgroups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_SIBLINGS = ("core_cpus_list", "thread_siblings_list")


def default_threads(root: Path = Path("/"), allowed: frozenset[int] | None = None) -> int:
    """One thread for each physical core that the process may run on, within the CPU quota of its cgroups.

    SMT siblings count once: the kernels fill a core's vector units from one thread, so a second one adds no
    throughput but meets at every barrier. Slow and fast cores of a hybrid processor all count, as work is handed
    out in small pieces. A quota is rounded down (a thread that is throttled holds up the team), to 1 at least.
    `root` and `allowed` (CPU numbers) stand in for the system's own in tests.
    """
    cores = _cores(root, _affinity() if allowed is None else allowed)
    return max(1, min([cores, *(int(quota) for quota in _quotas(root))]))


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _cores(root: Path, cpus: frozenset[int]) -> int:
    return len({_core_of(root, cpu) for cpu in cpus})


def _core_of(root: Path, cpu: int) -> str:
    """A text that is the same for all CPUs of a core; the CPU itself where the system does not say."""
    for name in _SIBLINGS:
        siblings = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology" / name)
        if siblings:
            return siblings
    return str(cpu)


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that each cgroup above the process allows, versions 1 and 2; a limit of a parent holds for its children."""
    paths = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            paths[controllers == ""] = path
    for mounted, mount, unified in _mounts(root):
        if unified in paths:
            for folder in _folders(mount, mounted, paths[unified]):
                yield from _quota(folder, unified)


def _mounts(root: Path) -> Iterator[tuple[str, Path, bool]]:
    """(path of the hierarchy that is mounted, mount point, version 2?) of every hierarchy that limits CPUs."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        fields, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            mounted, point = fields.split(" ")[3:5]
            yield mounted, root / point.lstrip("/"), kind == "cgroup2"


def _folders(mount: Path, mounted: str, path: str) -> Iterator[Path]:
    """The mount point and each folder from it down to the process's cgroup, as far as the mount shows them."""
    yield mount
    base = "" if mounted == "/" else mounted
    if path != base and not path.startswith(f"{base}/"):
        return
    folder = mount
    for name in path[len(base) :].split("/"):
        if name == "..":
            return
        if name:
            folder = folder / name
            yield folder


def _quota(folder: Path, unified: bool) -> Iterator[float]:
    if unified:
        quota, _, period = _read(folder / "cpu.max").partition(" ")
    else:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
