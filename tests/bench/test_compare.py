"""The judge on noise of known size, and the comparison of two sides that are made up."""

import itertools
import math
import random

import pytest

from treadle.bench.compare import Budgets, compare, table
from treadle.bench.judge import Judgement, Verdict, exact, judge, rank
from treadle.bench.points import Point
from treadle.errors import TreadleError

FACTS = {"dispatches": 122.0, "launches": 1.0, "planned_bytes": 1e8, "memory_bytes": 5e8, "per_slot_fallbacks": 0}
BUDGETS = Budgets(prefill=0.03, decode=0.02, p95=0.05, memory=0.01, dispatches=0.1, fallbacks=0)
PREFILL, DECODE = Point("prefill", 512, 1, 0), Point("decode", 16, 1, 128)


class Fake:
    """A side whose steps take `seconds`, times noise, times a drift that all sides share."""

    drift = itertools.count()

    def __init__(self, seconds, seed, noise=0.03, tail=1.0, **facts):
        self.facts = {**FACTS, **facts}
        self._seconds, self._noise, self._tail = seconds, noise, tail
        self._random = random.Random(seed)

    def measure(self, point):
        slow = 1 + 0.001 * next(Fake.drift)
        steps = 16 if point.name == "decode" else 1
        found = [self._seconds * slow * math.exp(self._random.gauss(0, self._noise)) for _ in range(steps)]
        return [*found[:-1], found[-1] * self._tail]


def compared(base, head, turns=40):
    return compare(base, head, [PREFILL, DECODE], BUDGETS, max_turns=turns, say=lambda text: None)


def test_the_interval_has_the_confidence_that_it_states():
    """Of 2000 samples whose median is 1 at most about 1 % may have an interval without it."""
    generator = random.Random(5)
    for count in (8, 12, 25):
        missed = 0
        for _ in range(2000):
            found = judge([math.exp(generator.gauss(0, 0.1)) for _ in range(count)], 0.02)
            missed += not found.low <= 1 <= found.high
        assert missed <= 2000 * 0.01 + 3 * math.sqrt(2000 * 0.01)


def test_ranks_against_the_binomial_distribution():
    assert [rank(n, 0.99) for n in (1, 7, 8, 10, 12, 20)] == [0, 0, 1, 1, 2, 4]
    assert rank(11, 0.95) == 2


def test_too_few_turns_decide_nothing():
    found = judge([1.5] * 7, 0.02)
    assert (found.verdict, found.low, found.high, found.ratio) == (Verdict.UNDECIDED, 0.0, math.inf, 1.5)
    assert judge([1.5] * 8, 0.02).verdict is Verdict.BEYOND
    assert judge([1.01] * 8, 0.02).verdict is Verdict.WITHIN
    with pytest.raises(ValueError, match="at least one"):
        judge([], 0.02)


def test_counts_are_judged_exactly():
    assert exact(100, 110, 0.1).verdict is Verdict.WITHIN
    assert exact(100, 111, 0.1).verdict is Verdict.BEYOND
    assert exact(0, 1, 0.1) == Judgement(Verdict.BEYOND, math.inf, math.inf, math.inf, 1)
    assert exact(0, 0, 0.0).verdict is Verdict.WITHIN


def test_a_slowdown_of_five_percent_is_found():
    for seed in range(10):
        found = compared(Fake(1.0, seed), Fake(1.05, seed + 100, noise=0.02))
        assert found["decode at 128"].verdict is Verdict.BEYOND, table(found)


def test_equal_sides_are_never_beyond_budget():
    """Ten comparisons of equals, with noise that is as large as the budget."""
    for seed in range(10):
        found = compared(Fake(1.0, seed), Fake(1.0, seed + 100))
        assert Verdict.BEYOND not in {j.verdict for j in found.values()}, table(found)
        assert found["decode at 128"].verdict is Verdict.WITHIN


def test_what_noise_leaves_open_is_said_to_be_open():
    found = compared(Fake(1.0, 1, noise=0.3), Fake(1.0, 2, noise=0.3), turns=9)
    assert found["prefill 512"].verdict is Verdict.UNDECIDED
    assert found["prefill 512"].turns == 9


def test_measuring_ends_when_all_is_decided():
    found = compared(Fake(1.0, 1, noise=1e-4), Fake(1.0, 2, noise=1e-4))
    assert found["prefill 512"].turns == found["decode at 128"].turns == 8


def test_drift_that_both_sides_share_cancels():
    """Each measurement is a tenth of a percent slower than the one before; BASE, HEAD, HEAD, BASE see none of it."""
    found = compared(Fake(1.0, 1, noise=0.0), Fake(1.0, 2, noise=0.0))
    assert found["prefill 512"].ratio == pytest.approx(1, abs=1e-5)


def test_a_longer_tail_is_seen_in_p95():
    found = compared(Fake(1.0, 1, noise=1e-3), Fake(1.0, 2, noise=1e-3, tail=1.2))
    assert found["decode at 128"].verdict is Verdict.WITHIN
    assert found["decode at 128, p95 of the steps"].verdict is Verdict.BEYOND


def test_an_extra_dispatch_a_layer_is_found():
    """30 layers of 4 dispatches, and one more in each."""
    found = compared(Fake(1.0, 1, noise=0.0), Fake(1.0, 2, noise=0.0, dispatches=152.0))
    assert found["dispatches a step"].verdict is Verdict.BEYOND
    found = compared(Fake(1.0, 1, noise=0.0), Fake(1.0, 2, noise=0.0, per_slot_fallbacks=1))
    assert found["per-slot fallbacks"].verdict is Verdict.BEYOND
    found = compared(Fake(1.0, 1, noise=0.0), Fake(1.0, 2, noise=0.0, memory_bytes=5.1e8))
    assert found["memory_bytes a step"].verdict is Verdict.BEYOND


def test_a_commits_own_sources_are_measured(tmp_path, tiny_gguf):
    """A side runs the sources that it is given, and refuses to run others under their name."""
    import shutil
    from pathlib import Path

    import treadle
    from treadle import _native
    from treadle.bench.sides import Side

    sources = tmp_path / "src"
    shutil.copytree(Path(treadle.__file__).parent, sources / "treadle", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(_native.__file__, sources / "treadle" / Path(_native.__file__).name)
    room = {"max_batch": 1, "max_length": 64, "tokens": 64}
    side = Side("HEAD", sources, str(tiny_gguf("llama", "Q8_0")), 1, "fast", room)
    try:
        assert side.facts["memory_bytes"] == side.facts["quoted_bytes"] > 0
        assert side.facts["dispatches"] > 0 and side.facts["per_slot_fallbacks"] == 0
        assert len(side.measure(Point("decode", 4, 1, 8))) == 4
        with pytest.raises(TreadleError, match="HEAD: "):
            side.measure(Point("decode", 4, 3, 8))
    finally:
        side.close()
    with pytest.raises(TreadleError, match=r"HEAD: (ModuleNotFoundError|RuntimeError)"):
        Side("HEAD", tmp_path / "nothing", "m", 1, "fast", room)
