"""Figures for people: bytes, rates, and the memory this process took."""

import resource
import sys
from pathlib import Path


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


def human_bytes(count: float) -> str:
    """12_345_678 -> '12.3 MB' (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def rate(tokens: int, seconds: float) -> float:
    """Tokens a second; 0 where nothing was measured."""
    return tokens / seconds if tokens > 0 and seconds > 0 else 0.0
