"""The public door over the reference backend on tiny checkpoints, against transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests import tiny

from treadle import LLM, SamplingParams
from treadle.errors import (
    BackendUnavailable,
    InvalidRequest,
    OutOfMemoryQuote,
    PromptTooLong,
    UnsupportedBatchSize,
    UnsupportedModel,
)
from treadle.inference import engine as engine_module
from treadle.inference.engine import describe
from treadle.inference.options import EngineOptions
from treadle.plan.context import Counters

PROMPTS = ["the inner theory", "on 12 other", "a", "in the"]


def make_llm(path, **options) -> LLM:
    values = {"backend": "reference", "numerics": "exact", "allow_per_slot": True, "max_model_len": 128, **options}
    return LLM(path, **values)


@pytest.fixture(scope="module")
def llm(tiny_checkpoint):
    with make_llm(tiny_checkpoint("llama"), max_num_seqs=4, max_num_batched_tokens=32) as made:
        yield made


@pytest.fixture(scope="module")
def oracle():
    return tiny.model("llama")


def oracle_logits(oracle, ids):
    with torch.no_grad():
        return oracle(torch.tensor([ids])).logits[0].numpy()


def relative_error(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def test_greedy_text_is_that_of_transformers(llm, oracle):
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=12))
    assert [output.prompt for output in outputs] == PROMPTS
    for output in outputs:
        ids = torch.tensor([output.prompt_token_ids])
        expected = oracle.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
        completion = output.outputs[0]
        assert completion.token_ids == expected
        assert completion.finish_reason == ("stop" if expected[-1] == 2 else "length")
        assert completion.text == llm.decode(expected)
        assert output.finished


def test_logits_of_all_positions_are_those_of_transformers(llm, oracle):
    ids = llm.encode("the inner theory on 12 other things, the and a")
    expected = oracle_logits(oracle, ids)
    for chunk in (None, 1, 3):
        logits = llm.logits(ids, chunk=chunk)
        assert logits.dtype == np.float32
        assert relative_error(logits, expected) < 1e-5
    several = llm.logits([ids, ids[:3], ids[2:]], chunk=2)
    for part, found in zip((ids, ids[:3], ids[2:]), several, strict=True):
        assert relative_error(found, oracle_logits(oracle, part)) < 1e-5


@pytest.mark.parametrize("name", ["llama-bias", "llama-llama3", "mistral-window"])
def test_other_shapes_agree_with_transformers(tiny_checkpoint, name):
    """Biases, rope scaling, and a window shorter than the prompt, over pages and chunks."""
    ids = np.random.default_rng(5).integers(3, 300, 90).tolist()
    with make_llm(tiny_checkpoint(name), max_num_seqs=2, max_num_batched_tokens=40, max_num_logits=40) as made:
        assert relative_error(made.logits(ids), oracle_logits(tiny.model(name), ids)) < 1e-5


@pytest.mark.parametrize("kv_dtype", ["f16", "bf16"])
def test_narrow_kv_is_close_and_takes_half(tiny_checkpoint, oracle, kv_dtype):
    ids = np.random.default_rng(5).integers(3, 300, 70).tolist()
    with make_llm(tiny_checkpoint("llama"), max_num_seqs=1, kv_dtype=kv_dtype) as made:
        error = relative_error(made.logits(ids), oracle_logits(oracle, ids))
        assert 1e-5 < error < 0.05
        assert made.memory_quote.state_bytes_per_token == 3 * 2 * 32 * 2


def test_q8_0_kv_is_close_and_takes_34_bytes_for_32(tiny_checkpoint):
    ids = np.random.default_rng(5).integers(3, 300, 70).tolist()
    with make_llm(tiny_checkpoint("llama-mha"), max_num_seqs=1, kv_dtype="q8_0") as made:
        error = relative_error(made.logits(ids), oracle_logits(tiny.model("llama-mha"), ids))
        assert 1e-5 < error < 0.05
        assert made.memory_quote.state_bytes_per_token == 3 * 4 * (32 + 32) // 32 * 34


def test_q8_0_kv_is_refused_for_heads_that_are_no_whole_blocks(tiny_checkpoint):
    with pytest.raises(UnsupportedModel, match=r"head_dim 16 and v_head_dim 16 .* use f16 or bf16"):
        make_llm(tiny_checkpoint("llama"), kv_dtype="q8_0")


def test_quantised_gguf_runs_on_its_dequantised_values(tiny_gguf, tiny_checkpoint):
    with make_llm(tiny_gguf("llama", "Q8_0"), max_num_seqs=1) as made:
        text = made.generate("the inner", SamplingParams(temperature=0, max_tokens=4))[0]
        logits = made.logits(text.prompt_token_ids)
    with make_llm(tiny_checkpoint("llama"), max_num_seqs=1) as exact:
        assert 1e-6 < relative_error(logits, exact.logits(text.prompt_token_ids)) < 0.05


# --- prompts ---------------------------------------------------------------------------------------------------


def test_prompts_may_be_text_or_ids(llm):
    params = SamplingParams(temperature=0, max_tokens=3)
    ids = llm.encode("the inner")
    forms = ["the inner", {"prompt": "the inner"}, {"prompt_token_ids": ids}, {"prompt_token_ids": np.array(ids)}]
    outputs = llm.generate(forms, params)
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1
    assert llm.generate("the inner", params)[0].outputs[0].token_ids == outputs[0].outputs[0].token_ids
    assert all(output.prompt_token_ids == ids for output in outputs)
    assert llm.generate([], params) == []


@pytest.mark.parametrize(
    "prompt", [5, [1, 2], {"prompt": 3}, {"text": "x"}, {"prompt": "x", "prompt_token_ids": [1]}, None]
)
def test_other_prompts_are_refused(llm, prompt):
    with pytest.raises(InvalidRequest, match="prompt must be"):
        llm.generate([prompt])
    assert not llm.engine.core.unfinished


def test_one_bad_prompt_leaves_nothing_queued(llm):
    with pytest.raises(PromptTooLong):
        llm.generate([{"prompt_token_ids": [5] * 3}, {"prompt_token_ids": [5] * 200}])
    with pytest.raises(InvalidRequest, match="sampling_params"):
        llm.generate(["a", "b"], [SamplingParams()])
    assert not llm.engine.core.unfinished
    assert llm.engine.core.pool.free_slots == 4


def test_sampling_params_may_differ_by_prompt(llm):
    several = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (2, 5, 3)]
    outputs = llm.generate(["a", "a", "a"], several)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 5, 3]


def test_n_completions(llm):
    params = SamplingParams(n=3, temperature=1.5, seed=3, max_tokens=6, ignore_eos=True, logprobs=2)
    output = llm.generate("the", params)[0]
    assert [completion.index for completion in output.outputs] == [0, 1, 2]
    assert len({tuple(completion.token_ids) for completion in output.outputs}) == 3
    assert all(len(completion.logprobs) == 6 for completion in output.outputs)
    assert output.outputs[0].cumulative_logprob == pytest.approx(
        sum(
            entry[token].logprob
            for token, entry in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
        )
    )


def test_chat_renders_the_template(llm):
    messages = [{"role": "user", "content": "the inner"}]
    params = SamplingParams(temperature=0, max_tokens=3)
    output = llm.chat(messages, params)[0]
    assert output.prompt == "<|im_start|>user\nthe inner<|im_end|>\n<|im_start|>assistant\n"
    assert output.prompt_token_ids[0] == 1 and 2 in output.prompt_token_ids
    assert output.outputs[0].token_ids == llm.generate(output.prompt, params)[0].outputs[0].token_ids
    assert len(llm.chat([messages, messages], params)) == 2
    assert llm.has_chat_template
    with pytest.raises(InvalidRequest, match="messages"):
        llm.chat(["hello"])


def test_a_checkpoint_without_a_tokenizer_takes_ids_only(tiny_checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny_checkpoint("llama") / name)
    with make_llm(tmp_path, max_num_seqs=1) as made:
        output = made.generate({"prompt_token_ids": [5, 6]}, SamplingParams(temperature=0, max_tokens=2))[0]
        assert len(output.outputs[0].token_ids) == 2
        assert not made.has_chat_template
        with pytest.raises(InvalidRequest, match="no tokenizer"):
            made.generate("text")
        with pytest.raises(InvalidRequest, match="no tokenizer"):
            made.chat([{"role": "user", "content": "x"}])


# --- streams ---------------------------------------------------------------------------------------------------


def test_a_stream_adds_up_to_the_whole(llm):
    params = SamplingParams(temperature=1.2, seed=11, max_tokens=10, ignore_eos=True)
    whole = llm.generate("on 12", params)[0]
    outputs = list(llm.stream("on 12", params))
    assert "".join(output.outputs[0].text_delta for output in outputs) == whole.outputs[0].text
    assert [len(output.outputs[0].token_ids) for output in outputs] == list(range(1, 11))
    assert [output.finished for output in outputs] == [False] * 9 + [True]
    assert outputs[-1].outputs[0].token_ids == whole.outputs[0].token_ids


def test_closing_a_stream_ends_its_request(llm):
    stream = llm.stream([{"role": "user", "content": "a"}], SamplingParams(max_tokens=50, ignore_eos=True))
    next(stream)
    assert llm.engine.core.unfinished
    stream.close()
    assert not llm.engine.core.unfinished
    assert llm.engine.core.pool.free_slots == 4


def test_a_stream_refuses_a_bad_request_at_once(llm):
    with pytest.raises(InvalidRequest):
        llm.stream({"prompt_token_ids": []})


def test_streams_and_generate_may_interleave(llm):
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    alone = llm.generate(["the", "on"], params)
    stream = llm.stream("the", params)
    first = next(stream)
    beside = llm.generate("on", params)
    rest = list(stream)
    assert rest[-1].outputs[0].token_ids == alone[0].outputs[0].token_ids
    assert "".join(o.outputs[0].text_delta for o in (first, *rest)) == alone[0].outputs[0].text
    assert beside[0].outputs[0].token_ids == alone[1].outputs[0].token_ids


# --- binding, memory, life -------------------------------------------------------------------------------------


def test_quote_equals_what_is_allocated_and_what_describe_says(llm, tiny_checkpoint):
    quote = llm.memory_quote
    parts = quote.weights_bytes + quote.registers_bytes + quote.workspace_bytes + quote.state_bytes
    assert quote.total_bytes == parts == llm.memory_measured_bytes
    assert quote.state_bytes_per_token == 3 * 2 * 32 * 4  # layers, k and v, kv_heads * head_dim, f32
    assert quote.state_bytes == 4 * 128 * quote.state_bytes_per_token
    options = EngineOptions(
        backend="reference",
        numerics="exact",
        allow_per_slot=True,
        max_model_len=128,
        max_num_seqs=4,
        max_num_batched_tokens=32,
    )
    described = describe(tiny_checkpoint("llama"), options)
    assert described.memory_quote == quote
    assert described.plan_hash == llm.info.plan_hash
    assert described.plan_hash in described.plan_text
    assert described.plan_dict["hash"] == described.plan_hash


def test_tied_weights_are_packed_once(tiny_checkpoint):
    tied, untied = (
        describe(tiny_checkpoint(name), EngineOptions(backend="reference", max_num_seqs=1)).memory_quote.weights_bytes
        for name in ("llama-tied", "llama")
    )
    assert untied - tied == 4 * tiny.VOCAB * 64


def test_a_per_slot_backend_needs_to_be_allowed(tiny_checkpoint):
    with pytest.raises(UnsupportedBatchSize, match="allow_per_slot"):
        make_llm(tiny_checkpoint("llama"), allow_per_slot=False)
    make_llm(tiny_checkpoint("llama"), allow_per_slot=False, max_num_seqs=1).close()


def test_per_slot_loops_are_counted(llm):
    """The reference backend's attention loops over slots; each of the three layers counts once a step."""
    core = llm.engine.core
    core.counters = counters = Counters()
    llm.generate([{"prompt_token_ids": [5, 6, 7]}] * 2, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    core.counters = None
    assert counters.per_slot_fallbacks == 4 * 3
    assert sum(counters.dispatches.values()) == 4 * llm.info.instructions


def test_a_quote_above_what_is_there_is_refused_before_allocation(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(engine_module, "available_bytes", lambda: 1_000_000)
    monkeypatch.setattr(engine_module, "Executor", None)  # would fail otherwise
    with pytest.raises(OutOfMemoryQuote, match="1000000 are available"):
        make_llm(tiny_checkpoint("llama"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "gpu"}, BackendUnavailable, "'gpu'; known: cpu, reference"),
        ({"numerics": "wild"}, BackendUnavailable, "'wild'; known: fast, bf16, exact"),
        ({"threads": 0}, BackendUnavailable, "threads"),
        ({"max_model_len": 513}, InvalidRequest, "513.* exceeds the model's 512"),
        ({"max_model_len": 0}, InvalidRequest, "max_model_len"),
        ({"max_num_seqs": True}, InvalidRequest, "max_num_seqs"),
        ({"max_num_batched_tokens": 4}, InvalidRequest, "max_num_batched_tokens"),
        ({"max_num_logits": 4}, InvalidRequest, "max_num_logits"),
        ({"kv_dtype": "int8"}, InvalidRequest, "kv_dtype"),
    ],
)
def test_options_out_of_range_are_refused_by_name(tiny_checkpoint, options, error, message):
    with pytest.raises(error, match=message):
        make_llm(tiny_checkpoint("llama"), **options)


def test_a_closed_llm_says_so(tiny_checkpoint):
    made = make_llm(tiny_checkpoint("llama"), max_num_seqs=1)
    made.close()
    made.close()
    with pytest.raises(InvalidRequest, match="closed"):
        made.generate("a")


def test_progress_counts_the_weights(tiny_checkpoint):
    seen = []
    make_llm(tiny_checkpoint("llama"), max_num_seqs=1, progress=lambda done, total: seen.append((done, total))).close()
    total = seen[0][1]
    assert seen == [(i, total) for i in range(1, total + 1)] and total > 20
