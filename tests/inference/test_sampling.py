"""Sampling against exact probabilities and against the logits processors of transformers."""

from __future__ import annotations

import math

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

from treadle.errors import NonFiniteLogits
from treadle.inference.request import Request, RequestMetrics, SamplingParams
from treadle.inference.sampling import candidates, draw, philox, processed, sample, top_logprobs, uniform


def make_request(prompt=(1, 2, 3), output=(), seed=7, index=0, stop_ids=(), **params) -> Request:
    request = Request(
        id=0,
        group=0,
        prompt_token_ids=list(prompt),
        params=SamplingParams(**params),
        max_length=10_000,
        stop_ids=frozenset(stop_ids),
        seed=seed,
        metrics=RequestMetrics(0.0),
        index=index,
    )
    for token in output:
        request.token_ids.append(token)
        if request.output_counts is not None:
            request.output_counts.add(token)
    return request


def random_logits(seed: int, vocab: int = 1000, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=vocab) * scale).astype(np.float32)


def distribution(row: np.ndarray, **params) -> np.ndarray:
    """Dense probabilities that the sampler draws from."""
    tokens, weights = candidates(row, float(row.max()), SamplingParams(**params))
    dense = np.zeros(len(row))
    dense[slice(None) if tokens is None else tokens] = weights / weights.sum(dtype=np.float64)
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
    vocab=st.sampled_from([2, 31, 1000, 5000]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    top_k=st.sampled_from([0, 1, 7, 300, 100_000]),
    top_p=st.sampled_from([0.05, 0.5, 0.93, 1.0]),
)
def test_candidates_are_those_of_transformers(seed, scale, vocab, temperature, min_p, top_k, top_p):
    row = random_logits(seed, vocab, scale)
    params = {"temperature": temperature, "min_p": min_p, "top_k": top_k, "top_p": top_p}
    ours, theirs = distribution(row, **params), transformers_distribution(row, **params)
    kept, expected = ours > 1e-30, theirs > 1e-30  # less underflows in f32
    if np.array_equal(kept, expected):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-9)
    else:  # f32 and f64 sums may disagree on the one token at top-p's edge
        assert (kept != expected).sum() == 1
        mass = np.sort(transformers_distribution(row, temperature, min_p, top_k))[::-1]
        place = max(kept.sum(), expected.sum()) - 1
        assert math.isclose(mass[:place].sum(), top_p, abs_tol=1e-6)


@pytest.mark.parametrize("count", [1, 10, 2000, 9999])
def test_top_p_of_equals_keeps_the_first(count):
    kept = np.flatnonzero(distribution(np.zeros(10_000, np.float32), top_p=(count - 0.5) / 10_000))
    np.testing.assert_array_equal(kept, np.arange(count))


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7, "top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.2, "temperature": 1.3},
        {"top_k": 12, "top_p": 0.8, "min_p": 0.02},
    ],
)
def test_draws_follow_the_exact_probabilities(params):
    """Chi-square over 6,000 tokens, each drawn as a request would at its next position."""
    row = random_logits(11, 40, 1.5)
    exact = transformers_distribution(row, **params)
    request = make_request(**params)
    counts = np.zeros(40)
    draws = 6_000
    for _ in range(draws):
        token = sample(row, request)
        counts[token] += 1
        request.token_ids.append(token)
    assert counts[exact == 0].sum() == 0
    likely = exact * draws >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(exact[likely], exact[~likely].sum()) * draws
    keep = expected > 0
    chi_square = (((observed - expected)[keep]) ** 2 / expected[keep]).sum()
    freedom = keep.sum() - 1
    # Wilson-Hilferty: the cube root is nearly normal; 5 standard deviations
    limit = freedom * (1 - 2 / (9 * freedom) + 5 * math.sqrt(2 / (9 * freedom))) ** 3 if freedom else 1e-6
    assert chi_square <= limit


def test_uniform_is_uniform_and_keyed():
    numbers = np.array([uniform(5, 0, i) for i in range(8_000)])
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, 50, (0, 1))[0]
    assert ((counts - 160) ** 2 / 160).sum() < 49 + 5 * math.sqrt(2 * 49)
    correlation = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
    assert abs(correlation) < 5 / math.sqrt(8_000)
    assert len({uniform(s, i, p) for s in range(5) for i in range(5) for p in range(5)}) == 125
    assert uniform(-1, 0, 3) == uniform(2**64 - 1, 0, 3)


@given(counter=st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4), key=st.integers(0, 2**128 - 1))
def test_philox_is_numpys(counter, key):
    made = philox(counter, [key & (2**64 - 1), key >> 64])
    # NumPy counts up before it generates
    before = (sum(value << (64 * i) for i, value in enumerate(counter)) - 1) % 2**256
    assert made == np.random.Philox(key=key, counter=before).random_raw(4).tolist()


@pytest.mark.parametrize("u", [0.0, 0.2, 0.5, 0.999999, np.nextafter(1.0, 0.0)])
def test_draw_never_gives_a_token_without_weight(u):
    weights = np.array([0, 0.3, 0, 0.7, 0], np.float32)
    assert draw(None, weights, u) == (1 if u < 0.3 else 3)
    assert draw(np.array([10, 11, 12, 13, 14]), weights, u) == (11 if u < 0.3 else 13)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), size=st.sampled_from([511, 513, 4096, 50_001]), u=st.floats(0, 1, exclude_max=True))
def test_draw_from_many_falls_where_the_running_sum_does(seed, size, u):
    weights = np.exp(random_logits(seed, size))
    weights[np.random.default_rng(seed).random(size) < 0.5] = 0
    at = draw(None, weights, u)
    mass = np.cumsum(weights.astype(np.float64)) / weights.sum(dtype=np.float64)
    assert weights[at] > 0
    assert (mass[at - 1] if at else 0.0) - 1e-6 <= u <= mass[at] + 1e-6


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    penalty=st.sampled_from([0.5, 1.1, 3.0]),
    prompt=st.lists(st.integers(0, 49), min_size=1, max_size=20),
    output=st.lists(st.integers(0, 49), max_size=200),
)
def test_repetition_penalty_is_that_of_transformers(seed, penalty, prompt, output):
    row = random_logits(seed, 50)
    ours = processed(row, make_request(prompt, output, repetition_penalty=penalty))
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), torch.from_numpy(row)[None])
    np.testing.assert_allclose(ours, theirs[0].numpy(), rtol=1e-6)


def test_frequency_and_presence_penalties_count_the_output_only():
    row = random_logits(1, 50)
    output = [4, 9, 4, 4, 30] + [7] * 100 + list(range(10, 50))
    ours = processed(row, make_request([1, 2, 4], output, frequency_penalty=0.4, presence_penalty=0.3))
    expected = [value - 0.4 * output.count(i) - 0.3 * (i in output) for i, value in enumerate(row)]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_bias_and_min_tokens_come_before_penalties():
    row = np.array([1.0, -1.0, 2.0, 0.5], np.float32)
    request = make_request([0], [2], logit_bias={1: 3.0, 3: -2.0}, min_tokens=2, stop_ids={2}, repetition_penalty=2.0)
    np.testing.assert_array_equal(processed(row, request), np.float32([0.5, 2.0, -np.inf, -1.5]))
    request.token_ids.append(0)  # now two tokens are out
    np.testing.assert_array_equal(processed(row, request), np.float32([0.5, 2.0, 1.0, -1.5]))


def test_greedy_takes_the_first_of_equals_and_leaves_the_row_alone():
    row = np.float32([0, 5, 5, 1])
    kept = row.copy()
    assert sample(row, make_request(temperature=0)) == 1
    assert sample(row, make_request(temperature=0, logit_bias={1: -1.0})) == 2
    assert sample(row, make_request(temperature=1e-30)) == 1
    np.testing.assert_array_equal(row, kept)


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 1e6])
def test_extreme_temperatures(temperature):
    row = random_logits(2, 100)
    tokens = {sample(row, make_request(temperature=temperature, output=[0] * i)) for i in range(50)}
    assert tokens == {int(row.argmax())} if temperature < 1 else len(tokens) > 20


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad, temperature):
    row = random_logits(2, 100)
    row[41] = bad
    with pytest.raises(NonFiniteLogits, match="token 41"):
        sample(row, make_request(temperature=temperature))
    with pytest.raises(NonFiniteLogits):
        sample(np.full(5, -np.inf, np.float32), make_request(temperature=temperature))


def test_masked_tokens_are_never_drawn():
    row = random_logits(2, 100)
    row[50:] = -np.inf
    assert all(sample(row, make_request(temperature=5.0, output=[0] * i)) < 50 for i in range(300))


def test_a_seed_gives_the_same_tokens_and_another_one_others():
    rows = [random_logits(i, 500) for i in range(40)]

    def draw_all(seed, index=0):
        return [sample(row, make_request(output=[0] * i, seed=seed, index=index)) for i, row in enumerate(rows)]

    assert draw_all(1) == draw_all(1)
    assert len({tuple(draw_all(1)), tuple(draw_all(2)), tuple(draw_all(1, index=1))}) == 3


@settings(deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(0, 20), chosen=st.integers(0, 199), tied=st.booleans())
def test_logprobs_are_those_of_torch(seed, count, chosen, tied):
    row = random_logits(seed, 200)
    if tied:
        row = np.round(row)
    found = top_logprobs(row, chosen, count)
    exact = torch.log_softmax(torch.from_numpy(row).double(), -1).numpy()
    order = sorted(range(200), key=lambda i: (-row[i], i))
    assert [(token, rank) for token, _, rank in found] == [
        (chosen, order.index(chosen) + 1),
        *((token, i + 1) for i, token in enumerate(order[:count])),
    ]
    np.testing.assert_allclose([value for _, value, _ in found], [exact[token] for token, _, _ in found], atol=1e-5)


def test_logprobs_of_a_tiny_vocabulary():
    assert [token for token, _, _ in top_logprobs(np.float32([1, 3, 2]), 0, 20)] == [0, 1, 2, 0]
