"""What a request may ask for; everything else is refused by name."""

from __future__ import annotations

import pytest

from treadle.errors import InvalidRequest
from treadle.inference.request import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 1.5),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", None),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("top_k", 2.0),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("seed", 2**64),
        ("seed", "x"),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", -1),
        ("logprobs", 21),
        ("logprobs", True),
        ("ignore_eos", 1),
        ("stop", [""]),
        ("stop", ["x" * 2000]),
        ("stop", [5]),
        ("stop", {"a": 1}),
        ("stop", ["x"] * 65),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", "12"),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", [1]),
    ],
)
def test_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InvalidRequest, match=field):
        SamplingParams(**{field: value})


def test_unknown_field_is_refused():
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)


def test_min_tokens_over_max_tokens():
    with pytest.raises(InvalidRequest, match="min_tokens"):
        SamplingParams(min_tokens=9, max_tokens=8)
    assert SamplingParams(min_tokens=9, max_tokens=None).min_tokens == 9


def test_values_at_the_edge_are_taken():
    params = SamplingParams(
        temperature=0, top_p=1, top_k=-1, min_p=1, seed=-(2**63), logprobs=20, stop="end", stop_token_ids=(5,),
        logit_bias={3: -100}, max_tokens=None, presence_penalty=-2, frequency_penalty=2,
    )  # fmt: skip
    assert params.stops == ("end",)
    assert SamplingParams().stops == ()
    assert SamplingParams(stop=["a", "b"]).stops == ("a", "b")
    with pytest.raises(AttributeError):
        params.temperature = 1.0
