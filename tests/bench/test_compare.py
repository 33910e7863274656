"""The judge on noise of known size, and the comparison of two sides that are made up."""

import itertools
import json
import math
import random
import statistics
from pathlib import Path

import pytest

from treadle.bench.compare import Budgets, compare, looks, table
from treadle.bench.judge import Judgement, Verdict, exact, judge, rank
from treadle.bench.points import Point
from treadle.cli.main import main
from treadle.errors import TreadleError

FACTS = {
    "plan": "p",
    "dispatches": 122.0,
    "launches": 1.0,
    "planned_bytes": 1e8,
    "memory_bytes": 5e8,
    "per_slot_fallbacks": 0,
}
BUDGETS = Budgets(prefill=0.03, decode=0.02, p95=0.05, memory=0.01, dispatches=0.1, fallbacks=0)
PREFILL, DECODE = Point("prefill", 512, 1, 0), Point("decode", 128, 1, 128)


class Fake:
    """A side whose steps take `seconds`, times what its process makes of it, times noise that neighbours share in part,
    times a drift; `tail`: how much longer one step in twelve takes. `busy`: the share of steps that something else on
    the machine interrupts, for up to three times as long; in one block of ten, half of them. `slow`: how much longer
    the longest tenth of steps would take."""

    drift = itertools.count()

    def __init__(self, seconds, seed, noise=0.02, process=0.01, tail=1.0, busy=0.0, slow=1.0, **facts):
        self.facts = {**FACTS, **facts}
        self._random = random.Random(seed)
        self._seconds = seconds * math.exp(self._random.gauss(0, process))
        self._noise, self._tail, self._busy, self._slow = noise, tail, busy, slow

    def open(self, point):
        pass

    def close(self):
        pass

    def steps(self, count):
        weather = self._seconds * (1 + 1e-4 * next(Fake.drift)) * math.exp(self._random.gauss(0, self._noise))
        busy = self._busy and (0.5 if self._random.random() < 0.1 else self._busy)
        return [weather * self._step(busy) for _ in range(count)]

    def _step(self, busy):
        own = self._random.gauss(0, 1)
        found = math.exp(own * self._noise) * (self._slow if own > 1.28 else 1)
        found *= self._tail if self._random.random() < 0.08 else 1
        return found * (self._random.uniform(1, 3) if self._random.random() < busy else 1)


def fakes(seconds, seed, **changed):
    """Starts one process after the other."""
    seeds = itertools.count(1000 * seed)
    return lambda: Fake(seconds, next(seeds), **changed)


P95 = "decode at 128, p95 of the steps"
WEATHER = {"busy": 0.03}
QUIET = {"noise": 1e-4, "process": 0.0}


@pytest.fixture(autouse=True)
def no_drift_of_other_tests(monkeypatch):
    monkeypatch.setattr(Fake, "drift", itertools.count())


def compared(base, head, points=(PREFILL, DECODE), turns=40):
    return compare(base, head, points, BUDGETS, max_turns=turns, say=lambda text: None).judgements


def test_the_interval_has_the_confidence_that_it_states():
    """Of 2000 samples whose median is 1 at most about 1 % may have an interval without it."""
    generator = random.Random(5)
    for count in (8, 12, 25):
        missed = 0
        for _ in range(2000):
            found = judge([math.exp(generator.gauss(0, 0.1)) for _ in range(count)], 0.02)
            missed += not found.low <= 1 <= found.high
        assert missed <= 2000 * 0.01 + 3 * math.sqrt(2000 * 0.01)


def test_ranks_against_tables_of_the_signed_rank_distribution():
    """One more than the critical values of the two-sided test, as in Hollander, Wolfe and Chicken, table A.4."""
    assert [rank(n, 0.99) for n in (1, 7, 8, 10, 12, 20, 30)] == [0, 0, 1, 4, 8, 38, 110]
    assert [rank(n, 0.95) for n in (5, 6, 10, 20, 30)] == [0, 1, 9, 53, 138]


def test_the_ratio_is_the_median_of_the_means_of_every_two():
    ratios = [1.0, 2.0, 4.0, 0.5, 1.1, 1.3, 0.9, 1.2, 1.25]
    means = sorted(math.sqrt(a * b) for a, b in itertools.combinations_with_replacement(ratios, 2))
    found = judge(ratios, 0.02)
    assert (found.low, found.ratio, found.high) == pytest.approx((means[1], statistics.median(means), means[-2]))


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
        found = compared(fakes(1.0, seed), fakes(1.05, seed + 100))
        assert found["decode at 128"].verdict is Verdict.BEYOND, found


def test_equal_sides_are_never_beyond_budget():
    """Ten comparisons of equals, with noise that is as large as the budget."""
    for seed in range(10):
        found = compared(fakes(1.0, seed), fakes(1.0, seed + 100))
        assert Verdict.BEYOND not in {j.verdict for j in found.values()}, found
        assert found["decode at 128"].verdict is Verdict.WITHIN


def test_processes_that_are_slow_by_chance_are_not_taken_for_the_change():
    """Of equal sides each process is 3 % faster or slower for all its life; blocks alone would be sure of a difference
    after one pair of processes."""
    calls = 0
    for seed in range(100):
        base, head = fakes(1.0, seed, noise=0.001, process=0.03), fakes(1.0, seed + 500, noise=0.001, process=0.03)
        calls += compared(base, head, [DECODE])["decode at 128"].verdict is Verdict.BEYOND
    assert calls <= 1


@pytest.mark.parametrize(
    ("point", "figure", "budget"), [(PREFILL, "prefill 512", BUDGETS.prefill), (DECODE, P95, BUDGETS.p95)]
)
def test_looking_often_does_not_find_more(point, figure, budget):
    """Two sides that differ by just the budget: of 100 comparisons about one may call it more, or less."""
    called = dict.fromkeys(Verdict, 0)
    for seed in range(100):
        found = compared(fakes(1.0, seed, **WEATHER), fakes(1.0 + budget, seed + 1000, **WEATHER), [point])
        called[found[figure].verdict] += 1
    assert called[Verdict.BEYOND] + called[Verdict.WITHIN] <= 1 + 3


def verdicts(figure, times=1.0):
    """Of 20 comparisons on a busy machine: one step in thirty is interrupted, and half of those of some blocks."""
    step = 2.6e-3
    found = []
    for seed in range(20):
        sides = fakes(step, seed, **WEATHER), fakes(step * times, seed + 100, **WEATHER)
        found.append(compared(*sides, [DECODE])[figure].verdict)
    return found


def test_p95_of_equal_sides_is_within_budget_on_a_busy_machine():
    found = verdicts(P95)
    assert Verdict.BEYOND not in found
    assert found.count(Verdict.WITHIN) >= 18


def test_a_tenth_more_is_found_in_p95_on_a_busy_machine():
    found = verdicts(P95, times=1.1)
    assert Verdict.WITHIN not in found
    assert found.count(Verdict.BEYOND) >= 18


def test_a_tenth_more_in_the_longest_steps_alone_is_found():
    """A tenth of HEAD's steps take 10 % longer: its median step is as it was."""
    for seed in range(10):
        found = compared(fakes(2.6e-3, seed), fakes(2.6e-3, seed + 100, slow=1.1), [DECODE])
        assert (found["decode at 128"].verdict, found[P95].verdict) == (Verdict.WITHIN, Verdict.BEYOND), found


def test_how_many_turns_are_judged():
    assert looks(40) == (10, 20, 40) and looks(3) == (3,) and looks(30) == (10, 20, 30)


def test_what_noise_leaves_open_is_said_to_be_open():
    found = compared(fakes(1.0, 1, noise=0.3), fakes(1.0, 2, noise=0.3), turns=9)
    assert found["prefill 512"].verdict is Verdict.UNDECIDED
    assert found["prefill 512"].turns == 9


def test_measuring_ends_when_all_is_decided():
    found = compared(fakes(1.0, 1, **QUIET), fakes(1.0, 2, **QUIET))
    assert found["prefill 512"].turns == found["decode at 128"].turns == 10
    found = compared(fakes(1.0, 1, **QUIET), fakes(1.0 + BUDGETS.prefill, 2, **QUIET))
    assert (found["prefill 512"].turns, found["decode at 128"].turns) == (40, 10)


def test_drift_that_both_sides_share_cancels():
    """Each block is slower than the one before; BASE, HEAD, HEAD, BASE see none of it."""
    found = compared(fakes(1.0, 1, noise=0.0, process=0.0), fakes(1.0, 2, noise=0.0, process=0.0))
    assert found["prefill 512"].ratio == pytest.approx(1, abs=1e-5)


def test_steps_that_were_interrupted_do_not_move_the_time_of_a_token():
    """Of one side one step in twelve takes ten times as long: p95 sees it, the median does not."""
    found = compared(fakes(1.0, 1, **QUIET), fakes(1.0, 2, tail=10.0, **QUIET), [DECODE])
    assert found["decode at 128"].verdict is Verdict.WITHIN, found
    assert found["decode at 128, p95 of the steps"].verdict is Verdict.BEYOND


def test_an_extra_dispatch_a_layer_is_found():
    """30 layers of 4 dispatches, and one more in each; a loop over slots; a hundredth of memory."""
    for changed, name in (
        ({"dispatches": 152.0}, "dispatches a step"),
        ({"per_slot_fallbacks": 1}, "per-slot fallbacks"),
        ({"memory_bytes": 5.1e8}, "memory_bytes a step"),
    ):
        found = compared(fakes(1.0, 1, **QUIET), fakes(1.0, 2, **QUIET, **changed), [DECODE])
        assert [key for key, it in found.items() if it.verdict is Verdict.BEYOND] == [name]


def test_the_table_says_what_was_judged():
    told = table(compare(fakes(1.0, 1, **QUIET), fakes(1.0, 2, plan="q"), [DECODE], BUDGETS, max_turns=10, say=len))
    assert "dispatches a step                               1.000               exact" in told
    assert "decode at 128, p95 of the steps" in told and told.endswith("the plans are different")


@pytest.mark.parametrize(
    ("changed", "code", "verdict"),
    [({}, 0, "within budget"), ({"seconds": 1.1}, 1, "beyond budget"), ({"process": 0.1}, 3, "undecided")],
)
def test_the_command_ends_with_what_was_found(changed, code, verdict, monkeypatch, capsys):
    """In the project's own checkout, with two sides that are made up instead of built."""
    from treadle.bench import sides

    seeds = itertools.count()

    def made_up(name, source, model, threads, numerics, room):
        assert (model, room["max_batch"]) == ("synthetic:llama:tiny:q8_0", 1)
        settings = {"seconds": 1.0, "seed": next(seeds), "noise": 0.001, "process": 0.0}
        return Fake(**settings | (changed if source == "built two" else {}))

    monkeypatch.setattr(sides, "built", lambda root, commit, say: f"built {commit}")
    monkeypatch.setattr(sides, "Side", made_up)
    monkeypatch.chdir(Path(__file__).parent)
    asked = ["bench", "compare", "one", "two", "--model", "synthetic:llama:tiny:q8_0", "--points", "decode"]
    assert main([*asked, "--max-turns", "10", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert (told["base"], told["head"], told["confidence"], told["same_plan"]) == ("one", "two", 0.99, True)
    assert told["judgements"]["decode at 128"]["verdict"] == verdict
    assert main([*asked, "--max-turns", "10"]) == code
    assert verdict in capsys.readouterr().out


def test_a_commits_own_sources_are_measured(tmp_path, tiny_gguf):
    """A side runs the sources that it is given, and refuses to run others under their name."""
    import shutil

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
        side.open(Point("decode", 4, 1, 8))
        assert len(side.steps(3)) == 3 and len(side.steps(1)) == 1
        side.open(Point("prefill", 40, 1, 0))
        assert len(side.steps(1)) == 1 and len(side.steps(1)) == 1
        with pytest.raises(TreadleError, match="HEAD: "):
            side.open(Point("decode", 4, 1, 80))
    finally:
        side.close()
    with pytest.raises(TreadleError, match=r"HEAD: (ModuleNotFoundError|RuntimeError)"):
        Side("HEAD", tmp_path / "nothing", "m", 1, "fast", room)
