"""From requests and logits to tokens: the native core against the definition, bit by bit; both by probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle import _native
from treadle.compute.reference.sampling import candidates
from treadle.errors import InvalidBatchSize, InvalidParamBlockABI
from treadle.inference.backends import reference
from treadle.inference.request import Request, RequestMetrics, SamplingParams
from treadle.inference.sampling import Sampling, SamplingArrays, check_record
from treadle.inference.scheduler import Scheduled
from treadle.inference.sinks import AllLogits
from treadle.plan.views import StepLimits

ISAS = _native.supported_isas()
CHOOSERS = ["definition", *ISAS]


def make_request(prompt=(1, 2, 3), output=(), seed=7, index=0, stop_ids=(), slot=0, id=0, **params) -> Request:
    request = Request(
        id=id,
        group=0,
        prompt_token_ids=list(prompt),
        params=SamplingParams(**params),
        max_length=10_000,
        stop_ids=frozenset(stop_ids),
        seed=seed,
        metrics=RequestMetrics(0.0),
        index=index,
    )
    request.slot = slot
    for token in output:
        take(request, token)
    return request


def take(request: Request, token: int) -> None:
    request.token_ids.append(token)
    if request.edits is not None and request.edits.seen is not None:
        request.edits.seen.add(token)


def choose(chooser: str, rows: np.ndarray, requests: list[Request]) -> Sampling:
    """One sampled row of each request; their slots are 0, 1, ..."""
    arrays = SamplingArrays(StepLimits(len(rows), len(rows), len(rows), 1, 1))
    for slot, request in enumerate(requests):
        request.slot, request.id = slot, slot
    sampling = arrays.fill([Scheduled(request, 1, 1) for request in requests])
    if chooser == "definition":
        reference.choose(rows, sampling)
    else:
        _native.choose(chooser, rows, sampling.arrays())
    return sampling


def sample(chooser: str, row: np.ndarray, request: Request) -> int:
    return int(choose(chooser, row[None], [request]).chosen[0])


def random_row(seed: int, columns: int = 1000, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=columns) * scale).astype(np.float32)


KINDS = ("normal", "peaked", "flat", "equal", "ties", "holes", "huge", "tiny", "one")


def row_of(kind: str, columns: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    row = random.normal(size=columns) * 3
    if kind == "peaked":
        row[random.integers(columns)] += 30
    elif kind == "flat":
        row *= 1e-3
    elif kind == "equal":
        row[:] = 1.25
    elif kind == "ties":
        row = np.round(row)
    elif kind == "holes":
        row[random.random(columns) < 0.7] = -np.inf
        row[random.integers(columns)] = 1.0
    elif kind == "huge":
        row *= 1e37
    elif kind == "tiny":
        row *= 1e-40
    elif kind == "one":
        row[:] = -np.inf
        row[random.integers(columns)] = -5.0
    return row.astype(np.float32)


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_every_isa_chooses_what_the_definition_does(data):
    """Token, best value, ranks and log-probabilities, equal to the last bit."""
    columns = data.draw(st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 255, 257, 1000, 3001]))
    count = data.draw(st.integers(1, 4))
    rows = np.stack(
        [row_of(data.draw(st.sampled_from(KINDS)), columns, data.draw(st.integers(0, 99))) for _ in range(count)]
    )
    ids = st.integers(0, columns - 1)
    requests = [
        make_request(
            prompt=data.draw(st.lists(ids, min_size=1, max_size=5)),
            output=data.draw(st.lists(ids, max_size=70)),
            seed=data.draw(st.integers(-(2**63), 2**64 - 1)),
            index=data.draw(st.integers(0, 3)),
            stop_ids=data.draw(st.sets(ids, max_size=2)),
            temperature=data.draw(st.sampled_from([0.0, 1e-5, 0.01, 0.7, 1.0, 5.0, 1e6])),
            top_k=data.draw(st.sampled_from([-1, 0, 1, 2, 20, 500, 2**40])),
            top_p=data.draw(st.sampled_from([5e-324, 1e-9, 0.1, 0.9, 0.9999999, 1.0])),
            min_p=data.draw(st.sampled_from([0.0, 1e-12, 0.05, 1.0])),
            repetition_penalty=data.draw(st.sampled_from([1.0, 1.0, 0.5, 1.3])),
            frequency_penalty=data.draw(st.sampled_from([0.0, 0.0, -2.0, 0.7])),
            presence_penalty=data.draw(st.sampled_from([0.0, 0.0, 1.5])),
            logit_bias=data.draw(st.none() | st.dictionaries(ids, st.sampled_from([-100.0, -0.3, 2.0]), max_size=3)),
            min_tokens=data.draw(st.sampled_from([0, 0, 10])),
            logprobs=data.draw(st.none() | st.integers(0, 20)),
        )
        for _ in range(count)
    ]
    expected = choose("definition", rows, requests)
    for isa in ISAS:
        before = rows.copy()
        found = choose(isa, rows, requests)
        np.testing.assert_array_equal(rows, before)
        np.testing.assert_array_equal(found.chosen, expected.chosen)
        np.testing.assert_array_equal(found.best, expected.best)
        for i, request in enumerate(requests):
            if request.params.logprobs is not None and math.isfinite(expected.best[i]):
                n = 1 + min(request.params.logprobs, columns)
                np.testing.assert_array_equal(found.listed_ids[i, :n], expected.listed_ids[i, :n])
                np.testing.assert_array_equal(found.listed_ranks[i, :n], expected.listed_ranks[i, :n])
                np.testing.assert_array_equal(found.listed_logprobs[i, :n], expected.listed_logprobs[i, :n])


@pytest.mark.parametrize("columns", [49_152, 262_144])
@pytest.mark.parametrize("kind", KINDS)
def test_a_large_vocabulary(columns, kind):
    row = row_of(kind, columns, 3)
    params = [
        {"temperature": 0.0, "logprobs": 20},
        {"temperature": 0.8},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 30.0, "top_p": 0.99},
        {"top_k": 50, "top_p": 0.95},
        {"top_k": 20_000},
        {"min_p": 0.05},
    ]
    requests = [make_request(seed=i, **each) for i, each in enumerate(params)]
    rows = np.stack([row] * len(params))
    expected = choose("definition", rows, requests)
    for isa in ISAS:
        found = choose(isa, rows, requests)
        np.testing.assert_array_equal(found.chosen, expected.chosen)
        np.testing.assert_array_equal(found.listed_ids[0], expected.listed_ids[0])
        np.testing.assert_array_equal(found.listed_logprobs[0], expected.listed_logprobs[0])


@pytest.mark.parametrize("chooser", ["definition", ISAS[0]])
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
def test_draws_follow_the_exact_probabilities(params, chooser):
    """Chi-square over 6,000 tokens, each drawn as a request would at its next position."""
    row = random_row(11, 40, 1.5)
    columns, _ = candidates(row, **{"temperature": 1.0, **params})
    exact = np.zeros(40)
    exact[columns] = np.exp(row[columns].astype(np.float64) / params.get("temperature", 1.0))
    exact /= exact.sum()
    counts, draws = np.zeros(40), 6_000
    request = make_request(**params)
    for _ in range(draws):
        token = sample(chooser, row, request)
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


@pytest.mark.parametrize("chooser", CHOOSERS)
def test_penalties_count_prompt_and_output(chooser):
    """Repetition: both; frequency and presence: the output only. Bias and min_tokens come before."""
    output = [4, 9, 4, 4, 30] + [7] * 100 + list(range(10, 50))
    for seed in range(20):
        row = random_row(seed, 50, 30.0)
        request = make_request(
            [1, 2, 4],
            output,
            temperature=0,
            frequency_penalty=0.4,
            presence_penalty=0.3,
            repetition_penalty=1.5,
            logit_bias={3: 8.0, 48: -5.0},
            min_tokens=1000,
            max_tokens=None,
            stop_ids={0, 12},
        )
        values = row.astype(np.float64)
        values[3], values[48], values[[0, 12]] = values[3] + 8, values[48] - 5, -np.inf
        for i in {1, 2, 4, *output}:
            values[i] = values[i] / 1.5 if values[i] > 0 else values[i] * 1.5
            values[i] -= 0.4 * output.count(i) + 0.3 * (i in output)
        found = choose(chooser, row[None], [request])
        assert found.chosen[0] == values.argmax()
        assert found.best[0] == pytest.approx(values.max(), abs=1e-4)


@pytest.mark.parametrize("chooser", CHOOSERS)
def test_min_tokens_holds_end_tokens_off_until_they_are_out(chooser):
    row = np.float32([0, 1, 9, 2])
    request = make_request(output=[1], temperature=0, min_tokens=2, stop_ids={2})
    assert sample(chooser, row, request) == 3
    request.token_ids.append(3)
    assert sample(chooser, row, request) == 2


@pytest.mark.parametrize("chooser", CHOOSERS)
def test_greedy_takes_the_first_of_equals_and_leaves_the_row_alone(chooser):
    row = np.float32([0, 5, 5, 1])
    kept = row.copy()
    assert sample(chooser, row, make_request(temperature=0)) == 1
    assert sample(chooser, row, make_request(temperature=0, logit_bias={1: -1.0})) == 2
    assert sample(chooser, row, make_request(temperature=1e-30)) == 1
    np.testing.assert_array_equal(row, kept)


@pytest.mark.parametrize("chooser", CHOOSERS)
@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 1e6])
def test_extreme_temperatures(chooser, temperature):
    row = random_row(2, 100)
    tokens = {sample(chooser, row, make_request(temperature=temperature, output=[0] * i)) for i in range(50)}
    assert tokens == {int(row.argmax())} if temperature < 1 else len(tokens) > 20


@pytest.mark.parametrize("chooser", CHOOSERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {"temperature": 1.0, "logprobs": 3}, {"logit_bias": {41: -5.0}}]
)
def test_the_first_logit_that_is_not_finite_is_named(chooser, bad, params):
    row = random_row(2, 100)
    row[41] = bad
    row[70] = bad
    found = choose(chooser, row[None], [make_request(**params)])
    assert found.chosen[0] == 41 and not math.isfinite(found.best[0])
    nothing = choose(
        chooser, np.full((1, 5), -np.inf, np.float32), [make_request(temperature=params.get("temperature", 1))]
    )
    assert nothing.best[0] == -math.inf and nothing.chosen[0] == 0
    none_left = make_request(logit_bias={0: -1.0}, min_tokens=1, stop_ids=range(5))
    assert choose(chooser, np.ones((1, 5), np.float32), [none_left]).best[0] == -math.inf


@pytest.mark.parametrize("chooser", CHOOSERS)
def test_masked_tokens_are_never_drawn(chooser):
    row = random_row(2, 100)
    row[50:] = -np.inf
    assert all(sample(chooser, row, make_request(temperature=5.0, output=[0] * i)) < 50 for i in range(300))


def test_a_seed_gives_the_same_tokens_and_another_one_others():
    rows = [random_row(i, 500) for i in range(40)]

    def draw_all(seed, index=0):
        requests = [make_request(output=[0] * i, seed=seed, index=index) for i in range(40)]
        return [sample(ISAS[0], row, request) for row, request in zip(rows, requests, strict=True)]

    together = choose(ISAS[0], np.stack(rows), [make_request(output=[0] * i, seed=1) for i in range(40)])
    assert draw_all(1) == draw_all(1) == together.chosen.tolist()
    assert len({tuple(draw_all(1)), tuple(draw_all(2)), tuple(draw_all(1, index=1))}) == 3


def test_a_slots_record_follows_its_request():
    arrays = SamplingArrays(StepLimits(8, 2, 8, 1, 1))
    first, second = make_request(temperature=0.5, id=1), make_request(temperature=0.75, id=2, output=[1, 1])
    third = make_request(temperature=0.25, id=3, slot=0)
    second.slot = 1
    assert arrays.fill([Scheduled(first, 1, 1), Scheduled(second, 1, 1)]).rows["temperature"].tolist() == [0.5, 0.75]
    rows = arrays.fill([Scheduled(third, 4, 0), Scheduled(second, 1, 1)]).rows
    assert (rows["temperature"].tolist(), rows["position"].tolist()) == ([0.75], [2])
    third.sink = AllLogits(4, 1)
    rows = arrays.fill([Scheduled(third, 3, 2)]).rows
    assert (rows["chooses"].tolist(), rows["temperature"].tolist()) == ([0, 0], [0.25, 0.25])


def test_records_and_edits_that_do_not_fit_are_refused():
    fields, nbytes = _native.sampled_row()
    check_record(fields, nbytes)
    with pytest.raises(InvalidParamBlockABI, match="rebuild"):
        check_record({**fields, "top_k": 4}, nbytes)
    row = random_row(0, 10)[None]
    for params in ({"logit_bias": {10: 1.0}}, {"logit_bias": {2: 1.0}, "min_tokens": 1, "stop_ids": {11}}):
        with pytest.raises(InvalidBatchSize, match="column"):
            choose(ISAS[0], row, [make_request(**params)])
    with pytest.raises(InvalidBatchSize, match="column"):
        choose(ISAS[0], row, [make_request([3, 12], presence_penalty=1.0)])
    with pytest.raises(InvalidBatchSize, match="1 rows for 2"):
        sampling = SamplingArrays(StepLimits(1, 1, 1, 1, 1)).fill([Scheduled(make_request(), 1, 1)])
        _native.choose(ISAS[0], np.zeros((2, 4), np.float32), sampling.arrays())
