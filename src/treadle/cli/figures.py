"""Figures for people: bytes and rates; and what --json says of where a model ran."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.inference.loaded import EngineInfo


def ran_on(info: "EngineInfo") -> dict[str, str | None]:
    """`fallback`: why the backend asked for did not run it, where this one is the fallback."""
    return {"backend": info.backend, "fallback": info.instead_of}


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
