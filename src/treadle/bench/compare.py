"""Two commits beside one another: points in turns, order reversed within each, until every point is decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from treadle.bench.judge import CONFIDENCE, Judgement, Verdict, exact, judge
from treadle.bench.points import Point
from treadle.bench.report import quantile


class Budgets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By how much HEAD may be above BASE, as fractions. `fallbacks`: how many more."""

    prefill: float
    decode: float
    p95: float
    memory: float
    dispatches: float
    fallbacks: int


class Compared(Protocol):
    """One side; see `sides.Side`."""

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def measure(self, point: Point) -> list[float]: ...


COUNTS: Final = {
    "dispatches": "dispatches",
    "launches": "dispatches",
    "planned_bytes": "memory",
    "memory_bytes": "memory",
}
"""What the sides state without noise -> its budget."""


def compare(
    base: Compared,
    head: Compared,
    points: Sequence[Point],
    budgets: Budgets,
    *,
    max_turns: int,
    say: Callable[[str], None],
) -> dict[str, Judgement]:
    """A judgement of each point's time and p95, and of each count.

    A turn measures every open point BASE, HEAD, HEAD, BASE: what drifts evenly cancels. A point is measured until its
    time is decided with the confidence of `judge`, or `max_turns` are over.
    """
    found = {
        f"{name} a step": exact(base.facts[name], head.facts[name], getattr(budgets, of)) for name, of in COUNTS.items()
    }
    more = head.facts["per_slot_fallbacks"] - base.facts["per_slot_fallbacks"] - budgets.fallbacks
    verdict = Verdict.BEYOND if more > 0 else Verdict.WITHIN
    ratio = 1.0 if more <= 0 else math.inf
    found["per-slot fallbacks"] = Judgement(verdict, ratio, ratio, ratio, 1)
    for side in (base, head):
        for point in points:
            side.measure(point)  # not counted: memory is touched for the first time
    times: dict[Point, list[float]] = {point: [] for point in points}
    tails: dict[Point, list[float]] = {point: [] for point in points}
    for turn in range(max_turns):
        still = [point for point in points if _open(times[point], _budget(point, budgets))]
        if not still:
            break
        say(f"turn {turn + 1} of at most {max_turns}: {', '.join(point.label for point in still)}")
        for point in still:
            a1, b1, b2, a2 = (side.measure(point) for side in (base, head, head, base))
            times[point].append(math.sqrt(sum(b1) * sum(b2) / (sum(a1) * sum(a2))))
            tails[point].append(quantile(sorted(b1 + b2), 0.95) / quantile(sorted(a1 + a2), 0.95))
    for point in points:
        found[point.label] = judge(times[point], _budget(point, budgets))
        if point.name == "decode":
            found[f"{point.label}, p95 of the steps"] = judge(tails[point], budgets.p95)
    return found


def _open(ratios: Sequence[float], budget: float) -> bool:
    return not ratios or judge(ratios, budget).verdict is Verdict.UNDECIDED


def _budget(point: Point, budgets: Budgets) -> float:
    return budgets.prefill if point.name == "prefill" else budgets.decode


def table(found: Mapping[str, Judgement]) -> str:
    """For people."""
    lines = [f"{'HEAD over BASE':44} {'median':>8} {f'{CONFIDENCE:.0%} interval':>19} {'turns':>6}"]
    for name, it in found.items():
        interval = "exact" if it.turns == 1 and it.low == it.high else f"{it.low:.3f} to {it.high:.3f}"
        lines.append(f"{name:44} {it.ratio:8.3f} {interval:>19} {it.turns:6}  {it.verdict}")
    return "\n".join(lines)
