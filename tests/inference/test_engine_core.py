"""The loop over a model whose tokens hash their whole history: whatever runs beside a request must not matter."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.history import VOCAB, Letters, finish, fixed, logits_of, make_core, paged

from treadle.compute.reference import random_bits
from treadle.errors import Cancelled, InvalidRequest, NonFiniteLogits, PromptTooLong
from treadle.inference.request import SamplingParams
from treadle.inference.sinks import AllLogits


def greedy(prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_of(tokens).argmax()))
    return tokens[len(prompt) :]


def params(**changes):
    return SamplingParams(**{"temperature": 0, "max_tokens": 8, **changes})


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_greedy_tokens_do_not_depend_on_company_chunks_or_pages(data):
    """Random prompts and limits; few pages, so that requests wait and are preempted."""
    prompts = data.draw(st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30), min_size=1, max_size=7))
    counts = [data.draw(st.integers(1, 20)) for _ in prompts]
    max_batch = data.draw(st.integers(1, 5))
    core, runner = make_core(
        max_batch=max_batch,
        max_rows=data.draw(st.integers(max_batch, 40)),
        pages=data.draw(st.integers(13, 40)),
    )
    requests = []
    for prompt, count in zip(prompts, counts, strict=True):
        chunk = data.draw(st.sampled_from([None, 1, 3, 7]))
        requests += core.add(prompt, params(max_tokens=count), chunk)
        if data.draw(st.booleans()):
            core.step()
    finish(core)
    for prompt, count, request in zip(prompts, counts, requests, strict=True):
        assert request.output_token_ids == greedy(prompt, count)
        assert request.finish_reason.value == "length"
    assert core.pool.free_pages == core.pool.total_pages
    assert core.pool.free_slots == max_batch
    assert all(batch <= max_batch and rows <= runner.limits.max_rows for batch, rows in runner.steps)


def test_requests_share_steps():
    core, runner = make_core(max_batch=4, max_rows=32)
    for i in range(4):
        core.add([i, 5, 6], params(max_tokens=10))
    finish(core)
    assert runner.steps == [(4, 12)] + [(4, 4)] * 9


def test_a_long_prompt_is_fed_in_chunks_beside_those_that_decode():
    core, runner = make_core(max_batch=2, max_rows=8)
    (first,) = core.add([1], params(max_tokens=6))
    core.step()
    (second,) = core.add(range(20), params(max_tokens=2))
    finish(core)
    assert runner.steps == [(1, 1), (2, 8), (2, 8), (2, 7), (2, 2), (1, 1)]
    assert first.output_token_ids == greedy([1], 6)
    assert second.output_token_ids == greedy(range(20), 2)


def test_preempted_requests_start_again_and_the_oldest_never_yields():
    core, _ = make_core(max_batch=3, max_rows=32, pages=8)
    requests = [core.add([i] * 8, params(max_tokens=16))[0] for i in range(3)]
    finish(core)
    assert [request.output_token_ids for request in requests] == [greedy([i] * 8, 16) for i in range(3)]
    assert requests[0].metrics.preemptions == 0
    assert core.stats.preemptions == sum(request.metrics.preemptions for request in requests) > 0


def test_preempted_requests_come_before_those_that_never_ran():
    core, _ = make_core(max_batch=2, max_rows=32, pages=8)
    first, second, third = (core.add([i] * 8, params(max_tokens=16))[0] for i in range(3))
    while core.unfinished:
        core.step()
        for request in core.scheduler.running:
            assert core.pool.length(request.slot) == request.computed
        if second in core.scheduler.waiting:
            assert third not in core.scheduler.running
    assert second.metrics.preemptions > 0 == first.metrics.preemptions


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), company=st.integers(0, 5), chunk=st.sampled_from([None, 2]))
def test_a_seed_gives_the_same_tokens_whatever_runs_beside_it(seed, company, chunk):
    chosen = SamplingParams(temperature=1.1, top_k=30, top_p=0.9, seed=seed, max_tokens=12, presence_penalty=0.5)
    alone, _ = make_core()
    (expected,) = alone.add([3, 1, 4], chosen)
    finish(alone)
    core, _ = make_core(max_batch=3, pages=20)
    for i in range(company):
        core.add([i] * 9, SamplingParams(temperature=0.9, max_tokens=9))
    (request,) = core.add([3, 1, 4], chosen, chunk)
    finish(core)
    assert request.output_token_ids == expected.output_token_ids


def test_the_completions_of_a_group_differ_and_are_reproducible():
    def tokens():
        core, _ = make_core()
        requests = core.add([7, 7], SamplingParams(n=3, seed=5, max_tokens=6))
        finish(core)
        assert [request.index for request in requests] == [0, 1, 2]
        return [tuple(request.output_token_ids) for request in requests]

    assert tokens() == tokens()
    assert len(set(tokens())) == 3


def test_a_sampled_token_is_where_the_seeds_number_falls():
    core, _ = make_core()
    (request,) = core.add([9], SamplingParams(seed=123, max_tokens=5))
    finish(core)
    for i in range(5):
        weights = np.exp(logits_of([9, *request.output_token_ids[:i]]).astype(np.float64))
        mass = np.cumsum(weights / weights.sum())
        assert request.output_token_ids[i] == np.searchsorted(mass, random_bits(123, 0, i) / 2.0**64, side="right")


def test_penalties_see_prompt_and_output():
    core, _ = make_core()
    (request,) = core.add([3, 3], params(frequency_penalty=2.0, presence_penalty=2.0, max_tokens=40))
    finish(core)
    tokens = [3, 3]
    for token in request.output_token_ids:
        row = logits_of(tokens).astype(np.float64)
        for seen in set(tokens[2:]):
            row[seen] -= 2.0 * tokens[2:].count(seen) + 2.0
        assert token == int(row.argmax())
        tokens.append(token)


# --- ends ------------------------------------------------------------------------------------------------------


def history_with(wanted, count=200):
    """A prompt whose greedy continuation brings the token `wanted` at the fourth place, and not before."""
    for i in range(VOCAB * VOCAB):
        prompt = [i % VOCAB, i // VOCAB]
        tokens = greedy(prompt, 4)
        if tokens[3] == wanted and wanted not in tokens[:3]:
            return prompt, tokens
    raise AssertionError("no such history")


def test_end_of_sequence_stops_and_shows_no_text():
    prompt, tokens = history_with(2)
    core, _ = make_core(codec=Letters())
    (request,) = core.add(prompt, params())
    (ignoring,) = core.add(prompt, params(ignore_eos=True))
    (later,) = core.add(prompt, params(min_tokens=5))
    finish(core)
    assert (request.output_token_ids, request.finish_reason.value, request.stop_reason) == (tokens, "stop", None)
    assert request.text == "".join(Letters().token_text(t) for t in tokens[:3])
    assert (ignoring.output_token_ids[:4], ignoring.output_length) == (tokens, 8)
    assert later.output_length >= 5 and later.output_token_ids[3] != 2


def test_stop_ids_name_themselves():
    prompt, tokens = history_with(50)
    core, _ = make_core(codec=Letters())
    (request,) = core.add(prompt, params(stop_token_ids=[50]))
    finish(core)
    assert (request.output_token_ids, request.finish_reason.value, request.stop_reason) == (tokens, "stop", 50)


def test_stop_strings_across_tokens_end_the_request_and_stay_hidden():
    tokens = greedy([5, 6], 8)
    letters = [Letters().token_text(t) for t in tokens]
    core, _ = make_core(codec=Letters())
    (request,) = core.add([5, 6], params(stop="".join(letters[2:5])))
    (shown,) = core.add([5, 6], params(stop="".join(letters[2:5]), include_stop_str_in_output=True))
    texts = []
    while core.unfinished:
        core.step()
        texts.append(request.text)
    assert request.output_token_ids == shown.output_token_ids == tokens[:5]
    assert (request.finish_reason.value, request.stop_reason) == ("stop", "".join(letters[2:5]))
    assert request.text == "".join(letters[:2])
    assert shown.text == "".join(letters[:5])
    assert all(request.text.startswith(text) for text in texts)


def test_held_back_text_comes_out_at_the_length():
    letters = [Letters().token_text(t) for t in greedy([5, 6], 4)]
    core, _ = make_core(codec=Letters())
    (request,) = core.add([5, 6], params(max_tokens=4, stop=letters[3] + "never"))
    finish(core)
    assert (request.text, request.finish_reason.value) == ("".join(letters), "length")


def test_max_model_len_ends_a_request():
    core, _ = make_core(max_seq_len=12)
    (request,) = core.add([1] * 9, params(max_tokens=None))
    (other,) = core.add([1] * 11, params(max_tokens=50))
    finish(core)
    assert request.output_token_ids == greedy([1] * 9, 3)
    assert (other.output_length, other.finish_reason.value) == (1, "length")
    with pytest.raises(PromptTooLong, match="12 tokens; max_model_len is 12"):
        core.add([1] * 12, params())


def test_a_request_that_can_never_fit_is_refused_at_once():
    core, _ = make_core(pages=3)
    with pytest.raises(PromptTooLong, match=r"state of 13 tokens .* takes 4 pages, the pool has 3"):
        core.add([1] * 6, params())
    with pytest.raises(PromptTooLong):
        core.add_sink([1] * 13, AllLogits(13, VOCAB))
    assert not core.unfinished
    (request,) = core.add([1] * 5, params())
    filling = core.add_sink([1] * 12, AllLogits(12, VOCAB))
    finish(core)
    assert request.output_token_ids == greedy([1] * 5, 8)
    assert filling.metrics.preemptions == request.metrics.preemptions == 0


@pytest.mark.parametrize(
    ("prompt", "changes", "field"),
    [
        ([], {}, "prompt_token_ids is empty"),
        ([VOCAB], {}, "prompt_token_ids: 97"),
        ([-1], {}, "prompt_token_ids: -1"),
        ([1], {"stop_token_ids": [VOCAB]}, "stop_token_ids"),
        ([1], {"logit_bias": {VOCAB: 1.0}}, "logit_bias"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(prompt, changes, field):
    core, _ = make_core()
    with pytest.raises(InvalidRequest, match=field):
        core.add(prompt, params(**changes))
    assert not core.unfinished


def test_abort_gives_everything_back_and_others_go_on():
    core, _ = make_core(max_batch=2)
    first, second, third = (core.add([i] * 5, params(max_tokens=10))[0] for i in range(3))
    core.step(), core.step()
    core.abort(second)
    core.abort(third)  # still waiting
    core.abort(second)
    finish(core)
    assert first.output_token_ids == greedy([0] * 5, 10)
    assert [r.finish_reason.value for r in (first, second, third)] == ["length", "abort", "abort"]
    assert core.pool.free_pages == core.pool.total_pages


def test_one_requests_error_does_not_touch_the_others():
    core, runner = make_core(max_batch=3)
    runner.poison = (8, 8, 8)
    bad, good = core.add([8, 8, 8], params())[0], core.add([8, 8, 9], params())[0]
    finish(core)
    assert isinstance(bad.error, NonFiniteLogits) and bad.finish_reason.value == "error"
    assert str(bad.error) == f"request {bad.id}: logit of token 3 is nan"
    assert good.error is None and good.output_token_ids == greedy([8, 8, 9], 8)


@pytest.mark.parametrize("descriptors", [[paged()], [paged(), fixed()]])
def test_a_cancelled_step_is_made_up_for(descriptors):
    core, runner = make_core(max_batch=2, max_rows=4, descriptors=descriptors)
    (request,) = core.add([1, 2, 3], params())
    (other,) = core.add([4, 5, 6], params())
    core.step()
    runner.block = True
    runner.entered.clear()
    canceller = threading.Thread(target=lambda: (runner.entered.wait(10), core.cancel()))
    canceller.start()
    with pytest.raises(Cancelled):
        core.step()
    canceller.join()
    runner.block = False
    finish(core)
    assert request.output_token_ids == greedy([1, 2, 3], 8)
    assert other.output_token_ids == greedy([4, 5, 6], 8)


def test_fixed_state_goes_with_its_slot():
    """Slots are taken over by later requests, and requests are preempted: the fixed state starts anew each time."""
    core, _ = make_core(max_batch=3, pages=8, descriptors=[paged(), fixed()])
    requests = [core.add([i] * 7, params(max_tokens=12))[0] for i in range(6)]
    finish(core)
    assert [request.output_token_ids for request in requests] == [greedy([i] * 7, 12) for i in range(6)]
    assert core.stats.preemptions > 0


# --- logits and logprobs -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40), min_size=1, max_size=5),
    chunk=st.sampled_from([None, 1, 7]),
    max_sampled=st.integers(3, 50),
)
def test_logits_of_all_positions(prompts, chunk, max_sampled):
    core, _ = make_core(max_batch=3, max_rows=16, max_sampled=max_sampled)
    requests = [core.add_sink(prompt, AllLogits(len(prompt), VOCAB), chunk) for prompt in prompts]
    beside = core.add([1, 2], params())[0]
    finish(core)
    for prompt, request in zip(prompts, requests, strict=True):
        expected = np.stack([logits_of(prompt[: i + 1]) for i in range(len(prompt))])
        np.testing.assert_array_equal(request.sink.values, expected)
    assert beside.output_token_ids == greedy([1, 2], 8)


def test_logits_may_fill_the_whole_length():
    core, _ = make_core(max_seq_len=10)
    request = core.add_sink([1] * 10, AllLogits(10, VOCAB))
    finish(core)
    assert request.sink.values.shape == (10, VOCAB)


def test_logprobs_are_of_the_unprocessed_logits():
    core, _ = make_core(codec=Letters())
    (request,) = core.add([4], params(logprobs=3, temperature=0, presence_penalty=2.0, max_tokens=20))
    (chosen_only,) = core.add([4], params(logprobs=0, max_tokens=2))
    finish(core)
    total, tokens = 0.0, [4]
    for token, entry in zip(request.output_token_ids, request.logprobs, strict=True):
        row = logits_of(tokens).astype(np.float64)
        exact = row - np.log(np.exp(row).sum())
        assert set(entry) == {token, *np.argsort(-row)[:3].tolist()}
        for i, value in entry.items():
            assert value.logprob == pytest.approx(exact[i], abs=1e-5)
            assert value.rank == 1 + (row > row[i]).sum()
            assert value.decoded_token == Letters().token_text(i)
        total += exact[token]
        tokens.append(token)
    assert request.cumulative_logprob == pytest.approx(total, abs=1e-4)
    assert any(entry[t].rank > 1 for t, entry in zip(request.output_token_ids, request.logprobs, strict=True))
    assert [list(entry) for entry in chosen_only.logprobs] == [[t] for t in chosen_only.output_token_ids]


def test_metrics_and_stats():
    core, _ = make_core(max_batch=2, max_rows=4)
    (request,) = core.add([1] * 6, params(max_tokens=3))
    finish(core)
    stats, metrics = core.stats, request.metrics
    assert (stats.prefill_steps, stats.prefill_tokens, stats.decode_steps, stats.decode_tokens) == (2, 6, 2, 2)
    assert metrics.arrival_s <= metrics.first_scheduled_s < metrics.first_token_s < metrics.finished_s
    assert metrics.prefill_s > 0 and metrics.decode_s > 0
    assert stats.prefill_s + stats.decode_s == pytest.approx(metrics.prefill_s + metrics.decode_s, rel=0.5)
    assert (core.last_step.slots, core.last_step.rows, core.last_step.sampled) == (1, 1, 1)
    assert core.last_step.seconds >= core.last_step.run_s > 0
