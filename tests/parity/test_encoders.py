"""Encoders against transformers in f32: tiny ones of every family and head, and MiniLM's real weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests import encoders, gguf_export
from transformers import AutoModel, AutoTokenizer

from treadle import LLM
from treadle.inference.encoder import Tokens
from treadle.models.checkpoint import open_checkpoint

TOLERANCE = 1e-5
LENGTHS = (150, 65, 97, 33, 7, 1)
TEXTS = [
    "The cat sits outside",
    "A man is playing guitar",
    "I love pasta, pizza and red wine. " * 3,
    "",
    "Ein schöner Tag: 27 °C, naïve café, 中文, emoji 🙂",
    "The new movie is awesome. " * 20,
]
LONG = "a long story about the sea. " * 60


def sequences(name: str) -> list[Tokens]:
    """Random tokens; pairs of types where the encoder has them."""
    random = np.random.default_rng(len(name))
    typed = encoders.CASES[name][1].get("type_vocab_size", 2) > 1 and "modern" not in name
    found = []
    for length in LENGTHS:
        ids = random.integers(5, encoders.VOCAB, length).tolist()
        found.append(Tokens(ids, [0] * (length // 2) + [1] * (length - length // 2) if typed else None))
    return found


@pytest.fixture(scope="module", params=encoders.CASES)
def case(request, tmp_path_factory):
    """(checkpoint, sequences, what transformers makes of them)"""
    name = request.param
    model, tokens = encoders.model(name), sequences(name)
    expected = encoders.vectors(name, model, [s.ids for s in tokens], [s.types for s in tokens])
    return encoders.save(name, tmp_path_factory.mktemp(name), model), tokens, expected


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_exact(case, backend):
    path, tokens, expected = case
    with LLM(path, backend=backend, numerics="exact", allow_per_slot=True) as llm:
        assert error(llm.engine.embedder.encode(tokens), expected) < TOLERANCE


def test_fast_on_quantised_weights(case):
    path, tokens, expected = case
    with LLM(path, quantize="q8_0") as llm:
        assert 1e-5 < error(llm.engine.embedder.encode(tokens), expected) < 0.1


def test_bits_do_not_depend_on_company_or_threads(case):
    path, tokens, _ = case
    with LLM(path, threads=1) as llm:
        expected = np.concatenate([llm.engine.embedder.encode([sequence]) for sequence in tokens])
    for threads in (1, 2, 3):
        with LLM(path, threads=threads, max_num_seqs=4) as llm:
            np.testing.assert_array_equal(llm.engine.embedder.encode(tokens), expected)
            np.testing.assert_array_equal(llm.engine.embedder.encode(tokens[::-1]), expected[::-1])


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "bf16", "q8_0"])
def test_types_of_keys_and_values(tmp_path, kv_dtype):
    path = encoders.save("bert", tmp_path)
    if kv_dtype == "q8_0":
        config = (path / "config.json").read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2')
        (path / "config.json").write_text(config)
    found = {}
    for dtype in ("f32", kv_dtype):
        with LLM(path, numerics="exact", kv_dtype=dtype) as llm:
            tokens = sequences("bert")
            found[dtype] = llm.engine.embedder.encode(tokens)
            alone = np.concatenate([llm.engine.embedder.encode([sequence]) for sequence in tokens])
            np.testing.assert_array_equal(found[dtype], alone)
    assert error(found[kv_dtype], found["f32"]) < {"f32": 1e-9, "f16": 1e-3, "bf16": 2e-2, "q8_0": 2e-2}[kv_dtype]


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "modernbert-biases"])
def test_both_doors_give_the_same_bits(tmp_path, name):
    """And one plan, but for RoBERTa: its GGUF is BERT's, the position table cut to begin at position 0."""
    model = encoders.model(name)
    path = encoders.save(name, tmp_path / "hf", model)
    encoders.describe(path)
    paths = (path, gguf_export.export(model, tmp_path / "model.gguf"))
    if name != "roberta":
        configs = [open_checkpoint(path).config for path in paths]
        assert configs[0] == configs[1]
        plans = [open_checkpoint(path).compile() for path in paths]
        assert plans[0] == plans[1]
    found = []
    for each in paths:
        with LLM(each, numerics="exact") as llm:
            found.append(llm.engine.embedder.encode(sequences(name)))
    np.testing.assert_array_equal(found[0], found[1])


@pytest.fixture(scope="module")
def minilm_oracle(minilm):
    """What sentence-transformers computes: transformers' BertModel, mean over the mask, unit length."""
    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        batch = tokenizer([*TEXTS, LONG], padding=True, truncation=True, max_length=256, return_tensors="pt")
        rows, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None].float()
        return torch.nn.functional.normalize((rows * mask).sum(1) / mask.sum(1), dim=1).numpy()


def test_minilm_exact(minilm, minilm_oracle):
    with LLM(minilm, numerics="exact") as llm:
        found = llm.embed([*TEXTS, LONG], truncate=True)
    assert np.abs(found - minilm_oracle).max() < 1e-5


def test_minilm_on_the_reference_backend(minilm, minilm_oracle):
    with LLM(minilm, backend="reference", allow_per_slot=True) as llm:
        assert np.abs(llm.embed(TEXTS[:4]) - minilm_oracle[:4]).max() < 1e-5


@pytest.mark.parametrize(
    ("options", "least"), [({}, 0.999999), ({"numerics": "bf16"}, 0.9999), ({"quantize": "q8_0"}, 0.998)]
)
def test_minilm_fast(minilm, minilm_oracle, options, least):
    with LLM(minilm, **options) as llm:
        found = llm.embed([*TEXTS, LONG], truncate=True)
    assert (found * minilm_oracle).sum(axis=1).min() > least
