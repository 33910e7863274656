"""Logits against transformers in f32 on the same values, over at least 256 positions."""

import numpy as np
import pytest
import torch
from tests import tiny
from tests.parity import oracles
from tests.parity.prose import ENGLISH, MIXED

from treadle.inference.llm import LLM

POSITIONS = 256
TOLERANCE = 1e-4
TEXTS = (ENGLISH, MIXED)


def smollm2_logits(path, texts, positions=None, **options):
    """[(ids, logits)] of each text's first positions."""
    with LLM(path, max_num_logits=POSITIONS, **options) as llm:
        prompts = [llm.encode(text)[:positions] for text in texts]
        return [(ids, llm.logits(ids)) for ids in prompts]


@pytest.fixture(scope="module")
def smollm2_exact(smollm2):
    return smollm2_logits(smollm2, TEXTS, numerics="exact")


@pytest.fixture(scope="module")
def smollm2_fast(smollm2):
    return smollm2_logits(smollm2, TEXTS, numerics="fast")


@pytest.fixture(scope="module")
def smollm2_bf16(smollm2):
    return smollm2_logits(smollm2, TEXTS, numerics="bf16")


def tiny_ids(name):
    return tiny.tokenizer().encode(MIXED).ids[:POSITIONS]


BLOCKS_OF_32 = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"]
BLOCKS_OF_256 = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]
TYPES = [
    *(("llama", dtype) for dtype in ["F16", "BF16", *BLOCKS_OF_32]),
    *(("llama-llama3", dtype) for dtype in ["F16", "Q8_0", "Q4_1"]),
    *(("llama-wide", dtype) for dtype in BLOCKS_OF_256),
    ("llama-tied", "Q5_0"),
    ("llama-wide-tied", "Q6_K"),
]


@pytest.mark.parametrize(("name", "dtype"), TYPES)
def test_tiny_gguf_of_every_type(name, dtype, tiny_gguf):
    path = tiny_gguf(name, dtype)
    ids = tiny_ids(name)
    expected = oracles.logits(tiny_gguf_oracle(name, path), ids)
    with LLM(path, numerics="exact") as llm:
        assert oracles.relative_error(llm.logits(ids), expected) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiny_safetensors_in_half_precision(dtype, tmp_path):
    """Stored rounded, computed in f32."""
    ids = tiny_ids("llama-bias")
    model = tiny.model("llama-bias")
    model.load_state_dict({name: value.to(dtype) for name, value in model.state_dict().items()})
    expected = oracles.logits(model, ids)
    with LLM(tiny.save("llama-bias", tmp_path, dtype), numerics="exact") as llm:
        assert oracles.relative_error(llm.logits(ids), expected) < TOLERANCE


def tiny_gguf_oracle(name, path):
    """The GGUF file's values in the config's own architecture (its rope scaling from the config, not the file)."""
    plain = oracles.llama_of_gguf(path)
    model = tiny.model(name)
    model.load_state_dict(plain.state_dict())
    return model


@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-bias", "llama-linear", "llama-llama3", "llama-yarn"])
def test_both_doors_give_the_same_logits(name, tiny_checkpoint, tiny_gguf):
    ids = tiny_ids(name)[:64]
    found = []
    for path in (tiny_checkpoint(name), tiny_gguf(name, "F32")):
        with LLM(path, numerics="exact") as llm:
            found.append(llm.logits(ids))
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize(("kv_dtype", "bound"), [("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 2e-2)])
def test_narrow_keys_and_values_cost_what_their_rounding_costs(kv_dtype, bound, tiny_checkpoint):
    ids, path = tiny_ids("llama-mha"), tiny_checkpoint("llama-mha")
    found = {}
    for dtype in ("f32", kv_dtype):
        with LLM(path, numerics="exact", kv_dtype=dtype) as llm:
            found[dtype] = llm.logits(ids)
    assert 1e-5 < oracles.relative_error(found[kv_dtype], found["f32"]) < bound


@pytest.mark.parametrize("text", [0, 1], ids=["english", "mixed"])
def test_smollm2_exact(text, smollm2_exact, smollm2_oracle):
    ids, found = smollm2_exact[text]
    assert len(ids) >= 2 * POSITIONS
    assert oracles.relative_error(found, oracles.logits(smollm2_oracle, ids)) < TOLERANCE


def test_smollm2_on_the_reference_backend(smollm2, smollm2_oracle):
    ((ids, found),) = smollm2_logits(smollm2, TEXTS[:1], 96, backend="reference", numerics="exact", max_num_seqs=1)
    assert len(ids) == 96
    assert oracles.relative_error(found, oracles.logits(smollm2_oracle, ids)) < TOLERANCE


def test_smollm2_fast_chooses_as_exact(smollm2_fast, smollm2_exact):
    (_, fast), (_, exact) = smollm2_fast[0], smollm2_exact[0]
    assert np.mean(fast.argmax(axis=1) == exact.argmax(axis=1)) >= 0.97


@pytest.mark.parametrize("text", [0, 1], ids=["english", "mixed"])
def test_smollm2_fast_keeps_the_perplexity(text, smollm2_fast, smollm2_exact):
    (ids, fast), (_, exact) = smollm2_fast[text], smollm2_exact[text]
    assert abs(oracles.perplexity(fast, ids) / oracles.perplexity(exact, ids) - 1) <= 0.01


def test_smollm2_fast_is_no_noisier_than_its_rounding(smollm2_oracle, smollm2_fast, smollm2_exact):
    """What fast loses is what int8 inputs lose, and not more."""
    (ids, fast), (_, exact) = smollm2_fast[1], smollm2_exact[1]
    with oracles.int8_inputs(smollm2_oracle):
        rounded = oracles.logits(smollm2_oracle, ids[:POSITIONS])
    noise = oracles.noise(rounded, exact[:POSITIONS])
    assert 0 < oracles.noise(fast[:POSITIONS], exact[:POSITIONS]) < 1.15 * noise


def agreement(found, expected):
    """Share of all texts' positions at which both put the same token first."""
    same = [a.argmax(axis=1) == b.argmax(axis=1) for (_, a), (_, b) in zip(found, expected, strict=True)]
    return np.mean(np.concatenate(same))


def test_smollm2_bf16_chooses_as_exact_more_often_than_fast(smollm2_bf16, smollm2_fast, smollm2_exact):
    found = agreement(smollm2_bf16, smollm2_exact)
    assert found >= 0.98 and found > agreement(smollm2_fast, smollm2_exact)


@pytest.mark.parametrize("text", [0, 1], ids=["english", "mixed"])
def test_smollm2_bf16_keeps_the_perplexity(text, smollm2_bf16, smollm2_exact):
    (ids, found), (_, exact) = smollm2_bf16[text], smollm2_exact[text]
    assert abs(oracles.perplexity(found, ids) / oracles.perplexity(exact, ids) - 1) <= 0.01


def test_smollm2_bf16_is_no_noisier_than_its_rounding(smollm2, smollm2_oracle, smollm2_exact):
    """What bf16 loses is what operands rounded to bf16 lose, and not more; keys and values are not rounded here."""
    ids, exact = smollm2_exact[1]
    ((_, found),) = smollm2_logits(smollm2, TEXTS[1:], POSITIONS, numerics="bf16", kv_dtype="f32")
    with oracles.bf16_operands(smollm2_oracle):
        rounded = oracles.logits(smollm2_oracle, ids[:POSITIONS])
    noise = oracles.noise(rounded, exact[:POSITIONS])
    assert 0 < oracles.noise(found, exact[:POSITIONS]) < 1.15 * noise
    assert oracles.noise(found, rounded) < noise  # they err alike: it is the same rounding


@pytest.mark.parametrize(("name", "dtype"), TYPES)
def test_tiny_models_in_bf16(name, dtype, tiny_gguf):
    """The first product's operands are the same to the bit in both, later ones may be rounded the other way."""
    path, ids = tiny_gguf(name, dtype), tiny_ids(name)[:64]
    with LLM(path, numerics="bf16", kv_dtype="f32", max_num_logits=64) as llm:
        found = llm.logits(ids)
    model = tiny_gguf_oracle(name, path)
    exact = oracles.logits(model, ids)
    with oracles.bf16_operands(model):
        rounded = oracles.logits(model, ids)
    assert oracles.noise(found, rounded) < 0.5 * oracles.noise(rounded, exact)
