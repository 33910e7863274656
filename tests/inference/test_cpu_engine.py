"""The engine on the cpu backend: bitwise the same whatever the company, chunks and threads; interruptible."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from treadle import LLM, SamplingParams, _native
from treadle.compute import reference
from treadle.plan.context import Counters

LENGTH = 130
MODELS = [("Q4_1", "fast"), ("Q4_0", "bf16"), ("Q8_0", "exact"), ("F32", "fast"), ("F16", "exact")]


def ids(seed: int, length: int = LENGTH) -> list[int]:
    return np.random.default_rng(seed).integers(3, 300, length).tolist()


def make_llm(path, numerics="fast", threads=2, **options) -> LLM:
    values = {"max_num_seqs": 9, "max_model_len": 256, "max_num_logits": 512, **options}
    return LLM(path, backend="cpu", numerics=numerics, threads=threads, **values)


@pytest.mark.parametrize(("dtype", "numerics"), MODELS)
def test_logits_are_bitwise_the_same(tiny_gguf, dtype, numerics):
    """Alone or among 1, 3 and 8 others; whole or in chunks of 1, 7, 64; with 1, 2 and 3 threads."""
    path = tiny_gguf("llama", dtype)
    prompt = ids(0)
    with make_llm(path, numerics, threads=1) as llm:
        expected = llm.logits(prompt)
    for threads in (1, 2, 3):
        with make_llm(path, numerics, threads) as llm:
            for chunk in (None, 1, 7, 64):
                np.testing.assert_array_equal(llm.logits(prompt, chunk=chunk), expected)
            for others in (1, 3, 8):
                company = [ids(i, 40 + 11 * i) for i in range(1, others + 1)]
                place = others // 2
                batch = [*company[:place], prompt, *company[place:]]
                for chunk in (None, 7):
                    np.testing.assert_array_equal(llm.logits(batch, chunk=chunk)[place], expected)


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_a_seeded_request_gives_the_same_tokens_in_any_company(tiny_gguf, numerics):
    chosen = SamplingParams(temperature=1.0, top_p=0.95, seed=9, max_tokens=40, ignore_eos=True, logprobs=3)
    others = SamplingParams(temperature=0.8, max_tokens=30, ignore_eos=True)
    with make_llm(tiny_gguf("llama", "Q4_1"), numerics, max_num_batched_tokens=48) as llm:
        alone = llm.generate({"prompt_token_ids": ids(1, 50)}, chosen)[0].outputs[0]
        prompts = [{"prompt_token_ids": ids(i, 20 + 9 * i)} for i in range(8)]
        among = llm.generate([*prompts, {"prompt_token_ids": ids(1, 50)}], [others] * 8 + [chosen])[-1].outputs[0]
    assert among.token_ids == alone.token_ids
    assert among.logprobs == alone.logprobs  # to the last bit


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_tokens_are_those_that_the_definition_chooses_from_the_logits(tiny_gguf, monkeypatch, isa):
    """Greedy and drawn, on every ISA, alone and in company, with 1, 2 and 3 threads."""
    monkeypatch.setattr(_native, "default_isa", lambda: isa)
    prompt, others = ids(1, 20), [ids(i, 8 + 5 * i) for i in range(2, 8)]
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    drawn = SamplingParams(temperature=0.9, top_p=0.95, top_k=200, seed=3, max_tokens=24, ignore_eos=True)
    biased = SamplingParams(temperature=0, logit_bias={17: 3.0}, presence_penalty=1.0, max_tokens=24, ignore_eos=True)
    found = set()
    for threads in (1, 2, 3):
        with make_llm(tiny_gguf("llama", "Q4_1"), threads=threads) as llm:
            assert llm.info.isa == isa
            for company in ([], [greedy] * 6, [drawn, greedy] * 3):
                prompts = [{"prompt_token_ids": each} for each in [prompt] * 3 + others[: len(company)]]
                outputs = llm.generate(prompts, [greedy, drawn, biased, *company])
                found.add(tuple(tuple(output.outputs[0].token_ids) for output in outputs[:3]))
            (tokens,) = found
            for i, params in enumerate((greedy, drawn)):
                rows = llm.logits([*prompt, *tokens[i][:-1]])[len(prompt) - 1 :]
                for position, (row, token) in enumerate(zip(rows, tokens[i], strict=True)):
                    if params.greedy:
                        assert token == row.argmax()
                    else:
                        bits = reference.random_bits(3, 0, position)
                        assert token == reference.draw(row, bits, 0.9, top_k=200, top_p=0.95)
    assert len(set(tokens)) == 3


def test_preemption_changes_no_bit(tiny_gguf):
    params = SamplingParams(temperature=0, max_tokens=80, ignore_eos=True, logprobs=2)
    prompts = [{"prompt_token_ids": ids(i, 60)} for i in range(4)]
    path = tiny_gguf("llama", "Q4_1")
    with make_llm(path) as roomy, make_llm(path, state_tokens=320) as tight:
        expected, found = roomy.generate(prompts, params), tight.generate(prompts, params)
        assert roomy.stats.preemptions == 0 < tight.stats.preemptions
    for a, b in zip(expected, found, strict=True):
        assert a.outputs[0].logprobs == b.outputs[0].logprobs


def test_decode_logits_are_those_of_prefill(tiny_gguf):
    """What was chosen step by step is what the whole sequence's logits say, bit by bit."""
    params = SamplingParams(temperature=0, max_tokens=70, ignore_eos=True, logprobs=1)
    with make_llm(tiny_gguf("llama", "Q8_0")) as llm:
        output = llm.generate({"prompt_token_ids": ids(4, 30)}, params)[0]
        tokens = output.outputs[0].token_ids
        rows = llm.logits([*output.prompt_token_ids, *tokens[:-1]])[29:]
    assert rows.argmax(axis=1).tolist() == tokens


def test_memory_is_what_was_quoted(tiny_gguf):
    with make_llm(tiny_gguf("llama", "Q4_1")) as llm:
        assert llm.memory_measured_bytes == pytest.approx(llm.memory_quote.total_bytes, rel=0.02)
        assert llm.info.isa == _native.default_isa()
        assert llm.info.threads == 2


def test_no_op_loops_over_slots(tiny_gguf):
    prompts = [{"prompt_token_ids": ids(i, 20)} for i in range(6)]
    with make_llm(tiny_gguf("llama", "Q4_1")) as llm:
        llm.engine.core.counters = counters = Counters()
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
        assert counters.per_slot_fallbacks == 0
        assert counters.launches > 0 and counters.planned_bytes > 0
        assert set(counters.dispatches.values()) <= {5, 15}  # five steps, three layers


def test_ctrl_c_leaves_the_engine_usable(tiny_gguf):
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    with make_llm(tiny_gguf("llama", "Q4_1"), max_num_seqs=2) as llm:
        prompts = [{"prompt_token_ids": ids(i, 50)} for i in range(40)]
        expected = llm.generate(prompts[0], params)[0].outputs[0].token_ids
        for delay in (0.02, 0.05, 0.11):
            threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                while time.monotonic() - began < 20:
                    llm.generate(prompts, params)
            assert time.monotonic() - began < 10
            assert not llm.engine.core.unfinished
            assert llm.engine.core.pool.free_pages == llm.engine.core.pool.total_pages
            assert llm.generate(prompts[0], params)[0].outputs[0].token_ids == expected
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_late_cancel_does_not_touch_the_next_step(tiny_gguf):
    with make_llm(tiny_gguf("llama", "Q4_1"), max_num_seqs=1) as llm:
        params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        expected = llm.generate({"prompt_token_ids": ids(0, 5)}, params)[0].outputs[0].token_ids
        llm.engine.core.cancel()
        assert llm.generate({"prompt_token_ids": ids(0, 5)}, params)[0].outputs[0].token_ids == expected
