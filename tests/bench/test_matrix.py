"""The benchmark matrix: what its file may say, what is run of it, and the records that it leaves."""

import json
from pathlib import Path

import pytest
from tests.governance.checkouts import checkout_with

from treadle.bench.matrix import read_matrix, run_matrix
from treadle.cli.main import main
from treadle.errors import InvalidFile, InvalidRecord, InvalidRequest
from treadle.governance.ledger import Benchmark, Ledger
from treadle.governance.runs import BENCHMARKS

BUDGETS = "[budgets]\nprefill = 0.03\ndecode = 0.02\np95 = 0.05\nmemory = 0.01\ndispatches = 0.1\nfallbacks = 0\n"
TINY = (
    BUDGETS
    + """
[[model]]
name = "synthetic:llama:tiny:q8_0"
kind = "small"
lengths = [8]
depths = [8]
batches = [2]
"""
)


@pytest.fixture
def checkout(tmp_path):
    return checkout_with(
        tmp_path, {"phases.toml": "phase = []\n", "benchmarks.toml": TINY}, list(BENCHMARKS.covers)
    ).root


def test_what_is_measured_is_recorded(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    assert main(["bench", "matrix", "--record", "--repeat", "1", "--threads", "1", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["models"]
    assert [point["name"] for point in report["points"]] == ["prefill", "decode", "decode"]
    assert report["counted"]["launches"] == 1 and report["counted"]["dispatches"] >= 3
    assert report["counted"]["planned_bytes"] > 0 and report["per_slot_fallbacks"] == 0
    (kept,) = Ledger(checkout / "governance" / "benchmarks.jsonl").records
    assert isinstance(kept, Benchmark)
    assert (kept.model, kept.plan, kept.report["points"]) == (report["model"], report["plan"], report["points"])
    assert len(kept.plan) == 64 and len(kept.commit) == 40


def test_sources_that_are_not_committed_are_not_recorded(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    (checkout / "native" / "file").write_text("other")
    assert main(["bench", "matrix", "--record"]) == 1
    assert "native/file: has changes that are not committed" in capsys.readouterr().err
    assert not (checkout / "governance" / "benchmarks.jsonl").exists()


def test_an_edited_record_is_refused(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    assert main(["bench", "matrix", "--record", "--repeat", "1", "--threads", "1"]) == 0
    path = checkout / "governance" / "benchmarks.jsonl"
    path.write_text(path.read_text().replace('"tok_s":', '"tok_s":9', 1))
    with pytest.raises(InvalidRecord, match=r"benchmarks.jsonl:1: altered"):
        Ledger(path)


@pytest.mark.parametrize(
    "text",
    [
        "[",
        BUDGETS,
        TINY.replace("decode = 0.02\n", ""),
        TINY.replace("kind", "kinds"),
        TINY.replace("[8]", '"8"'),
        TINY + TINY[len(BUDGETS) :],
    ],
)
def test_a_bad_matrix_is_named(text, checkout):
    (checkout / "governance" / "benchmarks.toml").write_text(text)
    with pytest.raises(InvalidFile, match=r"benchmarks.toml"):
        read_matrix(checkout / "governance")


def test_only_some_models(checkout):
    matrix = read_matrix(checkout / "governance")
    with pytest.raises(InvalidRequest, match="'gpt5' is not in the matrix: synthetic:llama:tiny:q8_0"):
        run_matrix(matrix, ["gpt5"], threads=1, numerics="fast", repeat=1, say=lambda text: None)


def test_the_projects_own_matrix_is_sound(monkeypatch, capsys):
    """Every synthetic model is one that this release knows, its points fit its positions, and no kind is left out."""
    monkeypatch.chdir(Path(__file__).parent)
    assert main(["bench", "matrix", "--list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["budgets"]["fallbacks"] == 0 < told["budgets"]["decode"] < told["budgets"]["prefill"]
    models = told["model"]
    for kind in ("dense", "mixture", "hybrid", "encoder"):
        found = [model for model in models if model["kind"].startswith(kind)]
        assert found, kind
        if kind != "encoder":
            assert {model["name"].rpartition(":")[2] for model in found} >= {"q4_k", "q8_0", "bf16"}
    for points in ("lengths", "depths", "batches", "load"):
        assert any(model[points] for model in models)
    assert max(depth for model in models for depth in model["depths"]) >= 16384


def test_an_encoder_is_measured_by_its_texts(checkout, tmp_path_factory, monkeypatch, capsys):
    from tests import encoders

    tiny_encoder = encoders.save("bert", tmp_path_factory.mktemp("bert"))
    entry = f'[[model]]\nname = "bert-q8_0"\nmodel = "{tiny_encoder}"\nquantize = "q8_0"\nkind = "encoder"\n'
    text = f"{BUDGETS}\n{entry}lengths = [8, 16]\nbatches = [3]\n"
    (checkout / "governance" / "benchmarks.toml").write_text(text)
    monkeypatch.chdir(checkout)
    assert main(["bench", "matrix", "--record", "--repeat", "1", "--threads", "1", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["models"]
    assert [(p["name"], p["tokens"], p["batch"]) for p in report["points"]] == [
        ("encode", 8, 1), ("encode", 16, 1), ("encode", 128, 3),
    ]  # fmt: skip
    assert all(point["tok_s"] > 0 < point["share_of_limit"] for point in report["points"])
    assert (report["quantize"], report["counted"]["launches"], report["per_slot_fallbacks"]) == ("q8_0", 1, 0)
    (kept,) = Ledger(checkout / "governance" / "benchmarks.jsonl").records
    assert isinstance(kept, Benchmark) and kept.model == "bert-q8_0"


def test_the_list_checks_models_and_records(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    file, kept = (checkout / "governance" / f"benchmarks.{end}" for end in ("toml", "jsonl"))
    assert main(["bench", "matrix", "--list"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "synthetic:llama:tiny:q8_0: small: prefill 8; decode after 8; batch 2"
    assert last.startswith("1 models; budgets: prefill +3%, decode +2%,") and last.endswith("fallbacks +0; 0 records")
    kept.write_text("{}\n")
    assert main(["bench", "matrix", "--list"]) == 1
    assert "benchmarks.jsonl:1: not a record" in capsys.readouterr().err
    kept.unlink()
    for old, new, said in (("llama:tiny", "lama:tiny", "lama"), ("depths = [8]", "depths = [9999999]", "positions")):
        file.write_text(TINY.replace(old, new))
        assert main(["bench", "matrix", "--list"]) == 1
        assert said in capsys.readouterr().err
