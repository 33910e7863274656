"""Scores of a text's tokens and their mean, against plain NumPy over an independent model's logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import tiny
from tests.inference.history import VOCAB, finish, logits_of, make_core

from treadle import LLM
from treadle.errors import InvalidRequest
from treadle.inference.perplexity import engine_sizes, mean_perplexity, perplexity, windows
from treadle.inference.sinks import NextTokenScores

TEXT = "the inner theory is on the other then. " * 12


def log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    shifted = rows - rows.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@settings(max_examples=60)
@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=20),
    data=st.data(),
    chunk=st.sampled_from([None, 1, 3]),
    max_sampled=st.integers(3, 9),
)
def test_scores_whatever_the_steps_admit(prompt, data, chunk, max_sampled):
    """The wanted rows come out in any chunking, and no step has logits of more rows than it may."""
    first = data.draw(st.integers(0, len(prompt) - 2))
    core, _ = make_core(max_batch=3, max_rows=16, max_sampled=max_sampled)
    sinks = [NextTokenScores(prompt, first) for _ in range(2)]
    for sink in sinks:
        core.add_sink(prompt, sink, chunk)
    finish(core)
    expected = [log_softmax(logits_of(prompt[: i + 1]))[prompt[i + 1]] for i in range(first, len(prompt) - 1)]
    for sink in sinks:
        np.testing.assert_allclose(sink.logprobs, expected, atol=1e-5)


def test_windows_are_those_of_llama_cpp():
    tokens = list(range(100, 135))
    found = list(windows(tokens, 8, None, None))
    assert [window.tokens for window in found] == [tokens[i : i + 8] for i in (0, 8, 16, 24)]
    assert {window.first for window in found} == {4}
    with_bos = list(windows(tokens, 8, None, 1))
    assert [window.tokens for window in with_bos] == [[1, *tokens[i + 1 : i + 8]] for i in (0, 8, 16, 24)]


def test_strided_windows_count_every_token_once():
    tokens = list(range(100, 135))
    found = list(windows(tokens, 9, 3, None))
    counted = [token for window in found for token in window.tokens[window.first + 1 :]]
    assert counted == tokens[6 : 6 + len(counted)]
    assert len(counted) == 3 * len(found) == 27


@pytest.mark.parametrize(
    ("count", "context", "stride", "message"),
    [
        (15, 8, None, "at least 16"),
        (7, 8, 2, "at least 8"),
        (99, 8, 8, "stride"),
        (99, 8, 0, "stride"),
        (9, 3, None, "4"),
    ],
)
def test_what_cannot_be_measured_is_refused(count, context, stride, message):
    with pytest.raises(InvalidRequest, match=message):
        list(windows([5] * count, context, stride, None))


def test_mean_and_error():
    values = np.log([0.5, 0.25, 0.125])
    found, error = mean_perplexity(values.tolist())
    assert found == pytest.approx(4.0)
    assert error == pytest.approx(4.0 * math.log(2) / math.sqrt(3))


@pytest.mark.parametrize("stride", [None, 5])
def test_perplexity_is_that_of_transformers(tiny_checkpoint, stride):
    context = 24
    with LLM(tiny_checkpoint("llama"), numerics="exact", **engine_sizes(context)) as llm:
        seen = []
        report = perplexity(llm, TEXT, context, stride, lambda *step: seen.append(step))
        tokens, bos = llm.encode_text(TEXT)
    oracle = tiny.model("llama")
    scores = []
    for window in windows(tokens, context, stride, bos):
        with torch.no_grad():
            rows = log_softmax(oracle(torch.tensor([window.tokens])).logits[0].numpy())
        scores += [rows[i, window.tokens[i + 1]] for i in range(window.first, context - 1)]
    assert report.scored == len(scores)
    assert report.perplexity == pytest.approx(math.exp(-np.mean(scores)), rel=1e-5)
    assert report.stderr == pytest.approx(report.perplexity * np.std(scores, ddof=1) / math.sqrt(len(scores)), rel=1e-4)
    assert seen[-1] == (report.windows, report.windows, pytest.approx(report.perplexity))


def test_the_same_whatever_goes_together(tiny_gguf):
    """One window at a time or many in a step, one thread or two: the same figure to the last bit."""
    found = set()
    for sizes in ({}, {"max_num_seqs": 2, "max_num_logits": 2, "max_num_batched_tokens": 16}):
        for threads in (1, 2):
            with LLM(tiny_gguf("llama", "Q4_1"), threads=threads, **{**engine_sizes(32), **sizes}) as llm:
                found.add(perplexity(llm, TEXT, 32).perplexity)
    assert len(found) == 1


def test_control_tokens_in_the_text_are_text(tiny_gguf):
    with LLM(tiny_gguf("llama", "Q8_0")) as llm:
        tokens, bos = llm.encode_text("a<|im_end|>b")
        assert llm.decode(tokens) == "a<|im_end|>b"
        assert bos is None
        with pytest.raises(InvalidRequest, match="must leave a token"):
            llm.score([[1, 2, 3], [1, 2]], first=1)
