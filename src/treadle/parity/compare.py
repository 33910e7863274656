"""Figures of a comparison: how far logits are from the oracle's, and how often they choose alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
NARROW: Final = 32


class Agreement(NamedTuple):
    """`top1`: share of the decided positions whose largest logit is the oracle's; `top1_all`: of all positions.
    `decided`: share of positions that are decided."""

    top1: float
    top1_all: float
    decided: float


def relative_error(found: Sequence[F32], expected: Sequence[F32]) -> float:
    """max |a - b| / max |b| over all prompts; infinite where a value found is not finite."""
    largest = max(float(np.abs(b).max()) for b in expected)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    return worst / largest if np.isfinite(worst) else float("inf")


def noise(found: Sequence[F32], expected: Sequence[F32]) -> float:
    """RMS of the difference / RMS of the expected values."""
    a, b = np.concatenate(found), np.concatenate(expected)
    return float(np.sqrt(np.mean((a - b) ** 2, dtype=np.float64) / np.mean(b**2, dtype=np.float64)))


def retrieval(found: Sequence[F32], expected: Sequence[F32]) -> float | None:
    """Share of the vectors whose nearest expected one, by the angle, is their own; None of narrow ones, such as scores,
    which angles do not tell apart."""
    a, b = np.concatenate(found), np.concatenate(expected)
    if a.shape[1] < NARROW:
        return None
    closeness = a @ b.T / np.linalg.norm(b, axis=1)
    return float(np.mean(closeness.argmax(axis=1) == np.arange(len(a))))


def agreement(found: Sequence[F32], expected: Sequence[F32], margin: float) -> Agreement:
    """A position is decided where the oracle's two largest logits are more than `margin` times the RMS apart."""
    a, b = np.concatenate(found), np.concatenate(expected)
    second, first = np.partition(b, -2, axis=1)[:, -2:].T
    decided = first - second > margin * np.sqrt(np.mean(b**2, dtype=np.float64))
    same = a.argmax(axis=1) == b.argmax(axis=1)
    top1 = float(same[decided].mean()) if decided.any() else 0.0
    return Agreement(top1, float(same.mean()), float(decided.mean()))
