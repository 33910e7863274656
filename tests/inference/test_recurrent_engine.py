"""Models with recurrent layers through the engine: preemption, several completions, chunks, what memory is quoted."""

import numpy as np
import pytest
import torch
import transformers

from treadle import LLM, SamplingParams
from treadle.parity import oracle

COMMON = {"vocab_size": 320, "hidden_size": 64, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
MODELS = {
    "hybrid": (
        "Lfm2ForCausalLM",
        {
            "intermediate_size": 96,
            "block_auto_adjust_ff_dim": False,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention", "conv"],
        },
    ),
    "state-only": (
        "Mamba2ForCausalLM",
        {"num_hidden_layers": 2, "num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 2},
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def path(request, tmp_path_factory):
    class_name, changes = MODELS[request.param]
    model = oracle.seeded_model(class_name, {**COMMON, **changes}, 3)
    return oracle.save(model, tmp_path_factory.mktemp(request.param))


def prompts(count, length=60):
    return [
        {"prompt_token_ids": np.random.default_rng(i).integers(3, 300, length + 9 * i).tolist()} for i in range(count)
    ]


GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=2)


def completions(llm, asked, params=GREEDY):
    return [[(o.token_ids, o.logprobs) for o in output.outputs] for output in llm.generate(asked, params)]


def make(path, **options):
    return LLM(path, **{"threads": 2, "max_num_seqs": 4, "max_model_len": 256, **options})


def test_company_and_preemption_change_no_bit(path):
    asked = prompts(6)
    with make(path) as llm:
        alone = [completions(llm, [prompt])[0] for prompt in asked]
    for options in ({}, {"max_num_batched_tokens": 16}, {"state_tokens": 256, "max_num_batched_tokens": 48}):
        with make(path, **options) as llm:
            assert completions(llm, asked) == alone
            if "state_tokens" in options and llm.memory_quote.state_bytes_per_token:
                assert llm.stats.preemptions > 0


def test_several_completions_of_a_prompt(path):
    drawn = SamplingParams(temperature=1.0, seed=5, n=3, max_tokens=20, ignore_eos=True)
    with make(path, max_num_seqs=2) as llm:
        few = completions(llm, prompts(2), drawn)
    with make(path, max_num_seqs=8) as llm:
        assert completions(llm, prompts(2), drawn) == few
    assert len({tuple(tokens) for tokens, _ in few[0]}) == 3


def test_a_long_prompt_in_chunks(path):
    ids = np.random.default_rng(1).integers(3, 300, 250).tolist()
    with make(path, max_num_logits=512) as llm:
        whole = llm.logits(ids)
        for chunk in (1, 7, 64):
            np.testing.assert_array_equal(llm.logits(ids, chunk=chunk), whole)


def test_memory_is_as_quoted(path):
    with make(path) as llm:
        quote = llm.memory_quote
        assert llm.memory_measured_bytes == quote.total_bytes
        assert quote.state_bytes_per_slot > 0
        assert (quote.state_bytes_per_token > 0) == (quote.state_bytes > 4 * quote.state_bytes_per_slot)


def test_greedy_tokens_are_those_of_transformers(path):
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(path).architectures[0])
    model = kind.from_pretrained(path, dtype=torch.float32)
    with make(path, numerics="exact") as llm:
        for prompt in prompts(2):
            (output,) = llm.generate([prompt], GREEDY)
            whole = prompt["prompt_token_ids"] + list(output.outputs[0].token_ids)
            with torch.no_grad():
                logits = model(torch.tensor([whole]), use_cache=False).logits[0]
            assert logits[-41:-1].argmax(dim=1).tolist() == whole[-40:]
