"""`treadle embed` and `treadle rerank`: what they print is what the library computes, and they end well."""

import numpy as np
import pytest
from tests import encoders
from tests.cli.command import failure, treadle, treadle_json

from treadle import LLM

TEXTS = ["the sea", "a", "é ü"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return encoders.save("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    return encoders.save("bert-reranker", tmp_path_factory.mktemp("reranker"))


def test_embed(bert):
    with LLM(bert) as llm:
        expected = llm.embed(TEXTS)
    found = treadle_json("embed", bert, *TEXTS)
    np.testing.assert_array_equal(np.array(found["embeddings"], np.float32), expected)
    assert (found["model"], found["width"]) == (bert.name, 64)
    lines = treadle("embed", bert, input="\n".join(TEXTS)).stdout.splitlines()
    np.testing.assert_allclose([[float(word) for word in line.split()] for line in lines], expected, atol=1e-6)


def test_rerank(reranker):
    documents = [*TEXTS, "the sea is wide"]
    with LLM(reranker) as llm:
        scores = llm.rerank("sea?", documents)
    order = np.argsort(-scores, kind="stable").tolist()
    found = treadle_json("rerank", reranker, "sea?", *documents)["results"]
    assert [result["index"] for result in found] == order
    assert [result["document"] for result in found] == [documents[i] for i in order]
    np.testing.assert_array_equal(np.array([result["score"] for result in found], np.float32), scores[order])
    lines = treadle("rerank", reranker, "sea?", input="\n".join(documents)).stdout.splitlines()
    assert lines == [f"{scores[i]:.6f}\t{documents[i]}" for i in order]


def test_failures(bert, reranker, tiny_gguf):
    long = "sea " * 200
    assert "text 0 has 202 tokens; the model takes 160" in failure("embed", bert, long)
    assert len(treadle("embed", bert, long, "--truncate").stdout.splitlines()) == 1
    assert "no text: stdin is empty" in failure("embed", bert, input="")
    assert "not UTF-8" in failure("embed", bert, b"\xff".decode(errors="surrogateescape"))
    assert "use LLM.rerank (treadle rerank)" in failure("embed", reranker, "a")
    assert "no classification head" in failure("rerank", bert, "a", "b")
    assert "treadle embed" in failure("run", bert, "a")
    assert "generates text" in failure("embed", tiny_gguf("llama", "Q8_0"), "a")
