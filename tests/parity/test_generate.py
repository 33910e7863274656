"""Greedy generation, token by token, against transformers: prefill, decode, batches and stop ids together."""

import pytest
from tests import tiny
from tests.parity import oracles
from tests.parity.prose import ENGLISH, MIXED

from treadle.inference.llm import LLM
from treadle.inference.request import SamplingParams

NEW_TOKENS = 40


def check(model, prompt, new, stop):
    """Each new token is the one that transformers' logits over all before it make the most likely."""
    chosen = oracles.logits(model, prompt + new)[len(prompt) - 1 : -1].argmax(axis=1).tolist()
    assert new == chosen
    assert len(new) == NEW_TOKENS or new[-1] == stop
    assert stop not in new[:-1]


def generated(llm, prompts, stop):
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, stop_token_ids=[stop])
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)
    for output, ids in zip(outputs, prompts, strict=True):
        assert output.prompt_token_ids == ids
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("name", ["llama", "llama-bias", "llama-llama3", "mistral-window"])
def test_tiny_models(name, tiny_checkpoint):
    ids = tiny.tokenizer().encode(MIXED).ids
    prompts = [ids[:1], ids[30:93], ids[100:228], ids[5:9], ids[300:365]]
    model, stop = tiny.model(name), tiny.CONFIGS[name].eos_token_id
    with LLM(tiny_checkpoint(name), numerics="exact", max_num_batched_tokens=64) as llm:
        found = generated(llm, prompts, stop)
    for prompt, new in zip(prompts, found, strict=True):
        check(model, prompt, new, stop)


def test_smollm2(smollm2, smollm2_oracle):
    with LLM(smollm2, numerics="exact") as llm:
        prompts = [llm.encode(ENGLISH)[:50], llm.encode("The capital of France is")]
        found = generated(llm, prompts, stop=2)
    for prompt, new in zip(prompts, found, strict=True):
        check(smollm2_oracle, prompt, new, 2)
