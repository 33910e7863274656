"""The parity matrix in short form: every case against transformers, on both backends and all numerics."""

import builtins
import sys

import msgspec
import numpy as np
import pytest
import torch
from tests.cli.command import failure, treadle, treadle_json

from treadle.errors import BackendUnavailable, InvalidFile, InvalidRequest
from treadle.formats.tensors import dequantise
from treadle.inference.backends.cpu_encode import RowEncoder
from treadle.parity import compare, oracle, run
from treadle.parity.matrix import MATRIX, read_matrix
from treadle.parity.report import page
from treadle.plan.ir import DType

FULL = read_matrix()
# Fewer positions than the full run: one that rounding turns weighs more.
SHORT = msgspec.structs.replace(FULL.defaults, lengths=(70, 33, 1), chunks=(7,), top1=0.95)


@pytest.mark.parametrize("case", FULL.cases, ids=lambda case: f"{case.family}-{case.name}")
def test_case(case):
    reports = list(run.run_cases([case], SHORT, threads=1))
    assert [(r.backend, r.numerics, r.weights) for r in reports] == run.settings_of(case)
    assert [r.message for r in reports if r.status != "passed"] == []
    assert all(r.plan_hash and r.positions == sum(SHORT.lengths) for r in reports)


def reports_of_one_case(**changes):
    return list(run.run_cases(FULL.select("llama", "gqa"), msgspec.structs.replace(SHORT, **changes), threads=1))


def test_a_weight_off_by_a_little_fails(monkeypatch):
    logits = oracle.logits

    def of_another_model(model, prompts):
        weight = model.get_parameter("model.layers.1.mlp.down_proj.weight")
        with torch.no_grad():
            weight[3, 5] += 0.05
            found = logits(model, prompts)
            weight[3, 5] -= 0.05
        return found

    monkeypatch.setattr(oracle, "logits", of_another_model)
    for report in reports_of_one_case()[:2]:
        assert report.status == "failed"
        assert "relative error" in report.message
        assert "first at instruction 11, swiglu of model.layers.1.mlp.gate_proj.weight" in report.diverges


def test_other_bits_fail(monkeypatch):
    feed = run.feed

    def one_bit_off(llm, prompts, chunks):
        ways = feed(llm, prompts, chunks)
        ways["decode"][0][5, 7] = np.nextafter(ways["decode"][0][5, 7], np.float32(np.inf))
        return ways

    monkeypatch.setattr(run, "feed", one_bit_off)
    reports = reports_of_one_case()
    assert [r.status for r in reports] == ["passed"] + ["failed"] * 4
    assert all("decode: not the bits" in r.message and r.differing == ["decode"] for r in reports[1:])


def test_tolerances_of_rounding_numerics_are_held():
    tight = msgspec.convert({"fast_bf16": 1e-6, "fast_q8_0": 1e-6, "bf16": 1e-6}, type(SHORT.noise))
    assert all("noise" in r.message for r in reports_of_one_case(noise=tight)[2:])
    assert all("top-1" in r.message for r in reports_of_one_case(top1=1.01)[2:])
    assert all("are decided" in r.message for r in reports_of_one_case(decided=0.999)[2:])


def test_a_refused_config_fails_by_name():
    case = msgspec.structs.replace(FULL.cases[0], config={**FULL.cases[0].config, "hidden_act": "mish"})
    reports = list(run.run_cases([case], SHORT, threads=1))
    assert all(r.status == "failed" and "hidden_act" in r.message for r in reports)


@pytest.mark.parametrize(
    ("family", "name"), [("llama", "mqa"), ("jamba", "experts"), ("mamba", "plain"), ("bert", "types")]
)
def test_weights_are_exact_however_they_are_stored(family, name):
    """So one oracle serves every setting. Narrow matrices too: routers, projections of few rows, one head's keys."""
    (case,) = FULL.select(family, name)
    model = oracle.seeded_model(case.class_name, case.config, 1)
    encode = RowEncoder(1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.to(torch.bfloat16).float(), tensor), name
        if tensor.ndim == 2:
            for matrix in (tensor, tensor.T):
                if matrix.shape[1] % oracle.BLOCK == 0:
                    rows = np.ascontiguousarray(matrix.numpy())
                    blocks = encode(rows, int(DType.Q8_0))
                    decoded = dequantise(blocks.reshape(-1), "q8_0", rows.shape)
                    np.testing.assert_array_equal(decoded, rows, name)


def test_weights_depend_on_their_names_alone():
    config = FULL.cases[0].config
    few, more = (oracle.seeded_model("LlamaForCausalLM", {**config, "num_hidden_layers": n}, 1) for n in (1, 2))
    for name, tensor in few.state_dict().items():
        assert torch.equal(tensor, more.state_dict()[name])
    other = oracle.seeded_model("LlamaForCausalLM", config, 2)
    assert not torch.equal(other.state_dict()["lm_head.weight"], few.state_dict()["lm_head.weight"])


def test_agreement_counts_decided_positions():
    expected = [np.array([[4.0, 0, 0], [0, 4, 3.9]], np.float32)]
    found = [np.array([[4.0, 0, 0], [0, 3.9, 4]], np.float32)]
    assert compare.agreement(found, expected, 0.5) == (1.0, 0.5, 0.5)
    assert compare.agreement(found, expected, 0.0) == (0.5, 0.5, 1.0)
    assert compare.relative_error([found[0] * np.nan], expected) == float("inf")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "mqa"', 'name = "gqa"', "two cases are named 'gqa'"),
        ('name = "mqa"', 'name = "mqa"\nrel_err = 1e-3', "rel_err or numerics, and reason go together"),
        ('name = "mqa"', 'name = "mqa"\nnumerics = ["exact"]', "rel_err or numerics, and reason go together"),
        ('name = "mqa"', 'name = "mqa"\nreason = "none"\nnumerics = ["slow"]', "numerics: expected some of"),
        ('name = "mqa"', 'name = "mqa"\ncolour = 1', "colour"),
        ("seed = 7", "", "seed"),
        ("[defaults]", "[defaults", "toml"),
    ],
)
def test_a_wrong_matrix_is_refused(old, new, said, tmp_path):
    path = tmp_path / "matrix.toml"
    path.write_text(MATRIX.read_text().replace(old, new, 1))
    with pytest.raises(InvalidFile, match=said):
        read_matrix(path)


def test_what_is_not_in_the_matrix_is_refused():
    with pytest.raises(InvalidRequest, match=r"family 'lama' .* known: llama"):
        FULL.select("lama", None)
    with pytest.raises(InvalidRequest, match=r"case 'tide' .* known: .*tied"):
        FULL.select("llama", "tide")


def test_without_the_oracle_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "treadle.parity.oracle")
    monkeypatch.setattr("treadle.parity.oracle", None, raising=False)
    monkeypatch.delattr("treadle.parity.oracle")
    real = builtins.__import__

    def without_torch(name, *arguments, **options):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(BackendUnavailable, match=r"torch is not installed.*make parity"):
        run.load_oracle()


def test_command(tmp_path):
    html = tmp_path / "parity.html"
    chosen = ("parity", "--family", "mistral", "--case", "window", "--backend", "cpu")
    found = treadle_json(*chosen, "--html", html)
    assert (found["passed"], found["failed"]) == (4, 0)
    for case, numerics in zip(found["cases"], ("exact", "fast", "fast", "bf16"), strict=True):
        assert (case["family"], case["case"], case["backend"]) == ("mistral", "window", "cpu")
        assert (case["numerics"], case["status"]) == (numerics, "passed")
        assert 0 < case["rel_err"] < (1e-4 if numerics == "exact" else 0.1)
        assert 0.99 <= case["top1"] <= 1
    assert html.read_text().count("<tr class=") == 4
    assert treadle("parity", "--list").stdout.splitlines() == [f"{c.family}/{c.name}" for c in FULL.cases]
    assert "is not in the matrix" in failure("parity", "--family", "lama")


def test_page_marks_failures_and_escapes():
    report = run.CaseReport(family="a", case="<b>", backend="cpu", numerics="exact", weights="f32", status="failed")
    text = page([report])
    assert '<tr class="failed">' in text
    assert "&lt;b&gt;" in text
    assert "0 passed, 1 failed" in text
