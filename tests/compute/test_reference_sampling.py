"""The definition of sampling against exact arithmetic and the logits processors of transformers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from treadle.compute.reference import log_probabilities, penalised, random_bits
from treadle.compute.reference.sampling import candidates, draw, exp, fma, masses_of, philox


def random_row(seed: int, columns: int = 1000, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=columns) * scale).astype(np.float32)


def distribution(row: np.ndarray, temperature=1.0, **bounds) -> np.ndarray:
    """Dense probabilities that the definition draws from."""
    columns, masses = candidates(row, temperature, **bounds)
    dense = np.zeros(len(row))
    dense[columns] = masses / masses.sum()
    return dense


def transformers_distribution(row: np.ndarray, temperature=1.0, min_p=0.0, top_k=0, top_p=1.0) -> np.ndarray:
    """The same by transformers' processors in f64, in vLLM's order."""
    scores = torch.from_numpy(row)[None].double()
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    for warper in warpers:
        scores = warper(None, scores)
    return torch.softmax(scores, -1)[0].numpy()


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    columns=st.sampled_from([2, 31, 1000, 5000]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    top_k=st.sampled_from([0, 1, 7, 300, 100_000]),
    top_p=st.sampled_from([0.05, 0.5, 0.93, 1.0]),
)
def test_candidates_are_those_of_transformers(seed, scale, columns, temperature, min_p, top_k, top_p):
    row = random_row(seed, columns, scale)
    bounds = {"min_p": min_p, "top_k": top_k, "top_p": top_p}
    ours, theirs = distribution(row, temperature, **bounds), transformers_distribution(row, temperature, **bounds)
    kept, expected = ours > 0, theirs > theirs.max() * 2.0**-41  # less counts as nothing
    if np.array_equal(kept, expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-12)
    else:  # f32 and f64 may disagree on the one column at an edge
        assert (kept != expected).sum() == 1
        mass = np.sort(transformers_distribution(row, temperature, min_p, top_k))[::-1]
        place = max(kept.sum(), expected.sum()) - 1
        assert math.isclose(mass[:place].sum(), top_p, abs_tol=1e-6)


@pytest.mark.parametrize("count", [1, 10, 2000, 9999])
def test_top_p_of_equals_keeps_the_first(count):
    kept = np.flatnonzero(distribution(np.zeros(10_000, np.float32), top_p=(count - 0.5) / 10_000))
    np.testing.assert_array_equal(kept, np.arange(count))


def test_top_k_keeps_all_that_equal_the_last():
    row = np.float32([1, 3, 2, 3, 2, 2, 0])
    np.testing.assert_array_equal(np.flatnonzero(distribution(row, top_k=3)), [1, 2, 3, 4, 5])


@settings(deadline=None)
@given(seed=st.integers(0, 1000), columns=st.sampled_from([1, 2, 300]), random=st.integers(0, 2**64 - 1))
def test_a_draw_falls_where_the_running_sum_does(seed, columns, random):
    row = random_row(seed, columns)
    row[1:][np.random.default_rng(seed).random(columns - 1) < 0.5] = -np.inf
    at = draw(row, random, 0.7)
    masses = [int(mass) for mass in candidates(row, 0.7)[1]]
    share = Fraction(random, 2**64) * sum(masses)
    assert sum(masses[:at]) <= share < sum(masses[: at + 1])


@pytest.mark.parametrize("share", [0.0, 0.2, 0.3, 0.999])
def test_the_ends_of_a_draw(share):
    row = np.log(np.array([0, 0.3, 0, 0.7, 0]), where=np.array([0, 1, 0, 1, 0], bool), out=np.full(5, -np.inf))
    assert draw(row.astype(np.float32), int(share * 2**64), 1.0) == (1 if share < 0.3 else 3)
    assert draw(row.astype(np.float32), 2**64 - 1, 1.0) == 3


@settings(deadline=None)
@given(
    a=st.floats(-(2.0**60), 2.0**60, width=32),
    b=st.floats(-(2.0**60), 2.0**60, width=32),
    c=st.floats(-(2.0**120), 2.0**120, width=32),
    close=st.booleans(),
)
def test_fma_rounds_once(a, b, c, close):
    if close:  # a sum that nearly cancels, and one that lies near a tie
        c = float(np.float32(-a * b * (1 + 2.0**-25)))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    found = fma(np.float32([a]), np.float32(b), np.float32(c))[0]
    neighbours = [found, np.nextafter(found, np.float32(np.inf)), np.nextafter(found, np.float32(-np.inf))]
    distances = [abs(Fraction(float(n)) - exact) for n in neighbours if np.isfinite(n)]
    assert distances[0] == min(distances)


def test_exp_is_exact_to_a_unit():
    x = np.concatenate([-np.geomspace(1e-8, 87.3, 200_000), -np.linspace(0, 87.3, 200_000)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(exp(x) - exact) / np.spacing(exact.astype(np.float32))).max() < 2
    np.testing.assert_array_equal(exp(np.float32([0, -0.0, -87.4, -np.inf])), [1, 1, 0, 0])


def test_masses_round_to_even():
    ulp = 2.0**-40
    np.testing.assert_array_equal(
        masses_of(np.float32([0, ulp / 2, 0.75 * ulp, 1.5 * ulp, 2.5 * ulp])), [0, 0, 1, 2, 2]
    )
    assert masses_of(np.float32([1]))[0] == 2**40


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    penalty=st.sampled_from([0.5, 1.1, 3.0]),
    seen=st.lists(st.integers(0, 49), min_size=1, max_size=40, unique=True),
)
def test_repetition_penalty_is_that_of_transformers(seed, penalty, seen):
    row = random_row(seed, 50)
    ours = row.copy()
    ours[seen] = penalised(row[seen], np.ones(len(seen), np.float32), penalty, 0.0, 0.0)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), torch.from_numpy(row)[None])
    np.testing.assert_allclose(ours, theirs[0].numpy(), rtol=1e-6)


def test_frequency_and_presence_penalties_need_a_count():
    values, counts = np.float32([1, -1, 2]), np.float32([0, 1, 5])
    np.testing.assert_allclose(penalised(values, counts, 1.0, 0.25, 0.5), [1, -1.75, 0.25])


def test_random_bits_are_uniform_and_keyed():
    numbers = np.array([random_bits(5, 0, i) / 2.0**64 for i in range(8_000)])
    counts = np.histogram(numbers, 50, (0, 1))[0]
    assert ((counts - 160) ** 2 / 160).sum() < 49 + 5 * math.sqrt(2 * 49)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 5 / math.sqrt(8_000)
    assert len({random_bits(s, i, p) for s in range(5) for i in range(5) for p in range(5)}) == 125
    assert random_bits(-1, 0, 3) == random_bits(2**64 - 1, 0, 3)


@given(counter=st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4), key=st.integers(0, 2**128 - 1))
def test_philox_is_numpys(counter, key):
    made = philox(counter, [key & (2**64 - 1), key >> 64])
    # NumPy counts up before it generates
    before = (sum(value << (64 * i) for i, value in enumerate(counter)) - 1) % 2**256
    assert made == np.random.Philox(key=key, counter=before).random_raw(4).tolist()


@settings(deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(0, 20), chosen=st.integers(0, 199), tied=st.booleans())
def test_log_probabilities_are_those_of_torch(seed, count, chosen, tied):
    row = random_row(seed, 200)
    if tied:
        row = np.round(row)
    found = log_probabilities(row, chosen, count)
    exact = torch.log_softmax(torch.from_numpy(row).double(), -1).numpy()
    order = sorted(range(200), key=lambda i: (-row[i], i))
    assert [(column, rank) for column, _, rank in found] == [
        (chosen, order.index(chosen) + 1),
        *((column, i + 1) for i, column in enumerate(order[:count])),
    ]
    np.testing.assert_allclose([value for _, value, _ in found], [exact[column] for column, _, _ in found], atol=1e-6)


def test_log_probabilities_of_few_columns():
    assert [column for column, _, _ in log_probabilities(np.float32([1, 3, 2]), 0, 20)] == [0, 1, 2, 0]
