"""Two commits beside one another: blocks of steps taken in turns, until every point is decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count, takewhile
from statistics import median
from typing import Any, Final, Protocol

import msgspec

from treadle.bench.judge import CONFIDENCE, Judgement, Verdict, exact, judge
from treadle.bench.points import Point


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

    def open(self, point: Point) -> None: ...

    def steps(self, count: int) -> list[float]: ...

    def close(self) -> None: ...


class Comparison(msgspec.Struct, frozen=True):
    """`same_plan`: whether both sides compile the model to the same plan."""

    same_plan: bool
    judgements: dict[str, Judgement]


ROUNDS: Final = 4
"""Of two blocks of each side, on the same sequences."""
STEPS: Final = 14
"""Of a decode block, whose longest step stands for the p95: it lies above the 95.2 % quantile of all steps in half of
such blocks, since 0.952 ** 14 = 0.5."""
DECODED: Final = 2 * ROUNDS * STEPS
TURN_SECONDS: Final = 2.0
"""A turn measures a decode point, on new sequences, until both sides together have taken that long: about what starting
them takes. More steps a turn or more turns are then worth the same."""
FIRST_LOOK: Final = 10
COUNTS: Final = {
    "dispatches": "dispatches",
    "launches": "dispatches",
    "planned_bytes": "memory",
    "memory_bytes": "memory",
}
"""What the sides state without noise -> its budget."""


def compare(
    base: Callable[[], Compared],
    head: Callable[[], Compared],
    points: Sequence[Point],
    budgets: Budgets,
    *,
    max_turns: int,
    say: Callable[[str], None],
) -> Comparison:
    """A judgement of each point's time and p95, and of each count. Decode points take DECODED tokens; see `to_compare`.

    A turn starts both sides, for how a process lies in memory makes it faster or slower for all its life, and takes of
    each point blocks of steps BASE, HEAD, HEAD, BASE, then HEAD, BASE, BASE, HEAD, and so on: a block of a few dozen
    milliseconds meets the same weather as its neighbours, and what drifts evenly cancels. The medians of the ratios are
    the turn's ones. A point is measured until its figures are decided, or `max_turns` are over. They are judged after
    10 turns, 20, 40, ... only, each time with a part of the error that CONFIDENCE leaves: looking often finds no more.
    What was decided once stays so.
    """
    planned = looks(max_turns)
    confidence = 1 - (1 - CONFIDENCE) / len(planned)
    times: dict[Point, list[float]] = {point: [] for point in points}
    tails: dict[Point, list[float]] = {point: [] for point in points}
    exactly: dict[str, Judgement] = {}
    plans: list[str] = []
    found: dict[Point, dict[str, Judgement]] = {}
    still = list(points)
    for turn in range(1, max_turns + 1):
        with _both(base, head) as sides:
            exactly = exactly or _counts(*sides, budgets)
            plans = plans or [side.facts["plan"] for side in sides]
            for point in still:
                say(f"turn {turn} of at most {max_turns}: {point.label}")
                ratio, tail = _turn(*sides, point, head_leads=turn % 2 == 0)
                times[point].append(ratio)
                tails[point].append(tail)
        if turn in planned:
            for point in still:
                decided = {name: j for name, j in found.get(point, {}).items() if j.verdict is not Verdict.UNDECIDED}
                found[point] = _judged(point, times[point], tails[point], budgets, confidence) | decided
            still = [p for p in still if any(j.verdict is Verdict.UNDECIDED for j in found[p].values())]
            if not still:
                break
    timed = {name: judgement for point in points for name, judgement in found[point].items()}
    return Comparison(plans[0] == plans[1], exactly | timed)


def looks(max_turns: int) -> tuple[int, ...]:
    """The turns after which it is judged."""
    doubling = takewhile(lambda turn: turn < max_turns, (FIRST_LOOK << i for i in count()))
    return (*doubling, max_turns)


@contextmanager
def _both(base: Callable[[], Compared], head: Callable[[], Compared]) -> Iterator[tuple[Compared, Compared]]:
    with ExitStack() as stack:
        sides = []
        for side in (base, head):
            sides.append(side())
            stack.callback(sides[-1].close)
        yield sides[0], sides[1]


def _counts(base: Compared, head: Compared, budgets: Budgets) -> dict[str, Judgement]:
    found = {
        f"{name} a step": exact(base.facts[name], head.facts[name], getattr(budgets, of)) for name, of in COUNTS.items()
    }
    more = head.facts["per_slot_fallbacks"] - base.facts["per_slot_fallbacks"] - budgets.fallbacks
    ratio = 1.0 if more <= 0 else math.inf
    verdict = Verdict.BEYOND if more > 0 else Verdict.WITHIN
    return {**found, "per-slot fallbacks": Judgement(verdict, ratio, ratio, ratio, 1)}


def to_compare(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points with as many tokens as blocks take."""
    return tuple(replace(point, tokens=DECODED) if point.name == "decode" else point for point in points)


def _turn(base: Compared, head: Compared, point: Point, head_leads: bool) -> tuple[float, float]:
    """The ratios of the point's time and of the p95 of its steps. Each side follows itself as often as the other."""
    decodes = point.name == "decode"
    steps = STEPS if decodes else 1
    first, second = (head, base) if head_leads else (base, head)
    for side in (first, second):
        side.open(point)
        side.steps(steps)  # not counted: memory is touched for the first time
    times, tails = list[float](), list[float]()
    measured = 0.0
    while not times or (decodes and measured < TURN_SECONDS):
        for side in (first, second):
            side.open(point)
        for n in range(ROUNDS):
            order = (second, first) if n % 2 else (first, second)
            took = [(side, side.steps(steps)) for side in (*order, *order[::-1])]
            one, other = ([found for side, found in took if side is which] for which in (first, second))
            pairs = list(zip(one, other, strict=True))
            times.append(math.sqrt(math.prod(_time(point, o) / _time(point, f) for f, o in pairs)))
            tails += [max(o) / max(f) for f, o in pairs]
            measured += sum(map(sum, (*one, *other)))
    time, tail = median(times), median(tails)
    return (1 / time, 1 / tail) if head_leads else (time, tail)


def _time(point: Point, steps: Sequence[float]) -> float:
    """Of a decoded token the median step, which a step that was interrupted does not move; else of all steps."""
    return median(steps) if point.name == "decode" else sum(steps)


def _judged(
    point: Point, times: Sequence[float], tails: Sequence[float], budgets: Budgets, confidence: float
) -> dict[str, Judgement]:
    if point.name != "decode":
        return {point.label: judge(times, budgets.prefill, confidence)}
    return {
        point.label: judge(times, budgets.decode, confidence),
        f"{point.label}, p95 of the steps": judge(tails, budgets.p95, confidence),
    }


def table(comparison: Comparison) -> str:
    """For people."""
    lines = [f"{'HEAD over BASE':44} {'ratio':>8} {f'{CONFIDENCE:.0%} interval':>19} {'turns':>6}"]
    for name, it in comparison.judgements.items():
        interval = "exact" if it.turns == 1 and it.low == it.high else f"{it.low:.3f} to {it.high:.3f}"
        lines.append(f"{name:44} {it.ratio:8.3f} {interval:>19} {it.turns:6}  {it.verdict}")
    return "\n".join([*lines, f"the plans are {'the same' if comparison.same_plan else 'different'}"])
