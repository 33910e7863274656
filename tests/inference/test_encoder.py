"""The door to encoders: embeddings and scores of texts, limits and refusals, memory, interruption."""

from __future__ import annotations

import json
import os
import signal
import threading

import numpy as np
import pytest
import torch
from tests import encoders

from treadle import LLM, SamplingParams
from treadle.errors import Cancelled, InvalidRequest, NonFiniteLogits, PromptTooLong, UnsupportedModel
from treadle.inference.encoder import Tokens
from treadle.plan.context import Counters
from treadle.plan.ir import Opcode

QUERY, DOCUMENTS = "where is the sea?", ["the sea is there.", "no idea", "the " * 30]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = encoders.save("bert", tmp_path_factory.mktemp("bert"))
    encoders.describe(path, length=40)
    return path


@pytest.fixture(scope="module")
def llm(bert):
    with LLM(bert, numerics="exact") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    with LLM(encoders.save("bert-reranker", tmp_path_factory.mktemp("reranker")), numerics="exact") as loaded:
        yield loaded


def encoded(*texts):
    """(ids, types) as the tokenizer gives them without its own truncation and padding."""
    tokenizer = encoders.tokenizer()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = tokenizer.encode(*texts)
    return found.ids, found.type_ids


def test_embeddings_are_those_of_the_tokens(llm):
    texts = ["the sea", "?", "a much longer text than the others."]
    found = llm.embed(texts)
    ids, types = zip(*map(encoded, texts), strict=True)
    rows = encoders.vectors("bert", encoders.model("bert"), ids, types)
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(llm.embed(texts[1]), found[1:2])
    np.testing.assert_array_equal(llm.embed([{"prompt_token_ids": ids[0]}, {"prompt": texts[2]}]), found[[0, 2]])
    assert llm.embed([]).shape == (0, 64)


@pytest.mark.parametrize("pooling", ["cls_token", "lasttoken"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_pooling_is_as_described(tmp_path, pooling, backend):
    path = encoders.save("bert", tmp_path)
    encoders.describe(path, pooling=pooling, normalise=False)
    texts = ["the sea", "the"]
    with LLM(path, backend=backend, numerics="exact", allow_per_slot=True) as llm:
        found = llm.embed(texts)
    with torch.no_grad():
        for row, text in zip(found, texts, strict=True):
            hidden = encoders.model("bert")(torch.tensor([encoded(text)[0]])).last_hidden_state[0]
            np.testing.assert_allclose(row, hidden[0 if pooling == "cls_token" else -1].numpy(), atol=1e-5)


def test_scores_are_those_of_the_pairs(reranker):
    found = reranker.rerank(QUERY, DOCUMENTS)
    ids, types = zip(*(encoded(QUERY, document) for document in DOCUMENTS), strict=True)
    assert {0, 1} == set(types[0])
    expected = encoders.vectors("bert-reranker", encoders.model("bert-reranker"), ids, types)
    np.testing.assert_allclose(found, expected[:, 0], atol=1e-5)


def test_a_text_that_is_too_long_is_refused_or_cut(llm, reranker):
    text = "sea " * 100
    with pytest.raises(PromptTooLong, match=r"text 1 has 102 tokens; the model takes 40"):
        llm.embed(["the sea", text])
    ids = encoded("sea " * 38)[0]
    assert len(ids) == 40
    np.testing.assert_array_equal(llm.embed(text, truncate=True), llm.embed({"prompt_token_ids": ids}))
    with pytest.raises(PromptTooLong):
        llm.embed({"prompt_token_ids": [7] * 41}, truncate=True)
    with pytest.raises(PromptTooLong, match="the model takes 160"):
        reranker.rerank("the sea", ["sea " * 200])
    whole = reranker.rerank("the sea", ["sea " * (160 - 5)])
    np.testing.assert_array_equal(reranker.rerank("the sea", ["sea " * 200], truncate=True), whole)


def test_steps_are_cut_by_rows_and_sequences(bert, llm):
    texts = ["the sea is there"] * 11 + ["sea"] * 3
    expected = llm.embed(texts)
    for options in ({"max_num_batched_tokens": 40}, {"max_num_seqs": 2}):
        with LLM(bert, numerics="exact", **options) as small:
            small.engine.embedder.counters = counters = Counters()
            np.testing.assert_array_equal(small.embed(texts), expected)
            assert counters.launches == (3 if "max_num_batched_tokens" in options else 7)
            assert counters.dispatches[Opcode.POOL] == counters.launches
            assert counters.per_slot_fallbacks == 0


def test_a_checkpoint_that_names_no_pooling_gets_the_mean_and_says_so(tmp_path, llm):
    with LLM(encoders.save("bert", tmp_path), numerics="exact") as bare:
        found = bare.embed("the sea")
        (note,) = bare.plans.encode.diagnostics
    assert "mean" in note
    assert llm.plans.encode.diagnostics == ()
    np.testing.assert_allclose(found / np.linalg.norm(found), llm.embed("the sea"), atol=1e-6)


def test_the_quote_holds(bert):
    for options in ({}, {"numerics": "exact"}, {"max_num_seqs": 3}, {"quantize": "q8_0"}):
        with LLM(bert, **options) as llm:
            assert llm.memory_measured_bytes == llm.memory_quote.total_bytes
            assert llm.memory_quote.state_bytes == 0


def test_what_an_encoder_does_not_do(llm, reranker, tiny_checkpoint):
    for call in (lambda: llm.generate("the"), lambda: llm.logits([1, 2]), lambda: next(llm.stream("a"))):
        with pytest.raises(InvalidRequest, match=r"bert is an encoder, which generates no text.*treadle embed"):
            call()
    with pytest.raises(InvalidRequest, match="no classification head"):
        llm.rerank("a", ["b"])
    with pytest.raises(InvalidRequest, match="classifies"):
        reranker.embed("a")
    with LLM(tiny_checkpoint("llama")) as decoder:
        with pytest.raises(InvalidRequest, match="llama generates text and pools nothing"):
            decoder.embed("a")
        with pytest.raises(InvalidRequest, match="llama generates text"):
            decoder.rerank("a", ["b"])
        assert decoder.generate("the", SamplingParams(max_tokens=2))


def test_rerank_wants_one_label(tmp_path):
    with LLM(encoders.save("bert-labels", tmp_path)) as llm, pytest.raises(InvalidRequest, match="3 labels"):
        llm.rerank("a", ["b"])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (Tokens([]), "text 0 has no tokens"),
        (Tokens([encoders.VOCAB]), "320 is not a token id"),
        (Tokens([-1]), "-1 is not a token id"),
        (Tokens([1, 2], [0]), "1 types for 2 tokens"),
        (Tokens([1, 2], [0, 2]), r"types must lie in \[0, 2\)"),
    ],
)
def test_bad_tokens_are_refused(llm, tokens, message):
    with pytest.raises(InvalidRequest, match=message):
        llm.engine.embedder.encode([tokens])


def test_length_is_bounded_by_the_model(bert):
    with pytest.raises(InvalidRequest, match="40 positions"):
        LLM(bert, max_model_len=41)
    with LLM(bert, max_model_len=10) as llm, pytest.raises(PromptTooLong, match="takes 10"):
        llm.embed("the sea is there, there")


def test_a_vector_that_is_not_finite_is_refused(bert, tmp_path):
    model = encoders.model("bert")
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[7] = torch.nan
    with LLM(encoders.save("bert", tmp_path, model)) as llm:
        with pytest.raises(NonFiniteLogits, match="text 1"):
            llm.engine.embedder.encode([Tokens([5, 6]), Tokens([5, 7])])
        assert np.isfinite(llm.engine.embedder.encode([Tokens([5, 6])])).all()


def test_cancel_and_ctrl_c_leave_it_usable(llm):
    expected = llm.embed("the sea")
    stop = threading.Event()

    def cancel():
        while not stop.is_set():
            llm.engine.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        with pytest.raises(Cancelled):
            for _ in range(1000):
                llm.embed(["the sea"] * 64)
    finally:
        stop.set()
        thread.join()
    np.testing.assert_array_equal(llm.embed("the sea"), expected)
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(100000):
            llm.embed(["the sea"] * 64)
    np.testing.assert_array_equal(llm.embed("the sea"), expected)


def edited(path, **changes):
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type.*relative_key"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"hidden_act": "mish"}, "hidden_act.*mish"),
        ("bert", {"type_vocab_size": 0}, "type_vocab_size"),
        ("bert", {"architectures": ["BertForTokenClassification"]}, "architectures.*TokenClassification"),
        ("bert", {"num_attention_heads": 5}, "multiple of 5 heads"),
        ("bert", {"unheard_of": 1}, "unheard_of"),
        ("bert-reranker", {"num_labels": 2}, "num_labels"),
        ("bert-reranker", {"sbert_ce_default_activation_function": "os.system"}, "activation_fn.*os.system"),
        ("bert-reranker", {"sentence_transformers": {"activation_fn": "torch.nn.ReLU"}}, "activation_fn.*ReLU"),
        ("roberta", {"pad_token_id": 200}, "pad_token_id"),
        ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling"),
        ("modernbert", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("modernbert", {"layer_types": ["chunked_attention"] * 3}, "layer_types"),
        ("modernbert", {"layer_types": None, "global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "mrope"}}}, "rope_type.*mrope"),
        ("modernbert", {"rope_parameters": {"full_attention": 3}}, "rope_parameters"),
        ("modernbert", {"rope_parameters": None, "local_rope_theta": None}, "local_rope_theta"),
    ],
)
def test_configs_that_are_refused(tmp_path, name, changes, message):
    path = edited(encoders.save(name, tmp_path), **changes)
    with pytest.raises(UnsupportedModel, match=message):
        LLM(path)


def test_modernbert_of_older_files(tmp_path):
    """global_attn_every_n_layers and the two thetas, as before transformers 5."""
    model = encoders.model("modernbert")
    path = encoders.save("modernbert", tmp_path / "new", model)
    older = encoders.save("modernbert", tmp_path / "old", model)
    thetas = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 3}
    edited(older, rope_parameters=None, layer_types=None, **thetas)
    with LLM(path) as new, LLM(older) as old:
        assert old.info.plan_hash == new.info.plan_hash
