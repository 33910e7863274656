"""Runs of the parity and of the benchmark matrix as evidence: what is recorded, and what of it does not count."""

import json
import os
import platform
from pathlib import Path

import pytest
from tests.governance.checkouts import bench_record, checkout_with, commit, parity_case, parity_record

from treadle.cli.main import main
from treadle.errors import InvalidFile, InvalidRecord
from treadle.governance import phases, runs
from treadle.governance.runs import BENCHMARKS, PARITY
from treadle.governance.sources import Checkout, machine

PHASES = """
[[phase]]
name = "one"
title = "First"
roles = ["models"]
rollback = "the flag --old"
rollback_proof = ["true"]
[[phase.criterion]]
id = "parity"
what = "the matrix passes"
record = "parity"
[[phase.criterion]]
id = "speed"
what = "the matrix was measured"
record = "benchmarks"
"""
CHECKLIST = """
[[item]]
number = 1
title = "One"
decided = "so"
lives = ["native"]
record = "parity"
proofs = [["echo", "alive"]]
"""
MATRIX = '[[model]]\nname = "a"\n[[model]]\nname = "b"\n'


@pytest.fixture
def checkout(tmp_path):
    paths = sorted({*PARITY.covers, *BENCHMARKS.covers, "src/treadle/cli"})
    return checkout_with(tmp_path, {"phases.toml": PHASES, "benchmarks.toml": MATRIX}, paths)


def measured(checkout, *models, **report):
    for model in models:
        bench_record(checkout, model, **report)


def standing(checkout):
    return phases.standing(checkout, phases.ledger_of(checkout), phases.phase_named(checkout, "one"))


def check(checkout):
    return phases.check(checkout, "one", lambda text: None)


def test_a_phase_takes_the_runs_on_record(checkout):
    with pytest.raises(InvalidRecord, match="phase one: parity is missing: run `treadle parity --record`"):
        check(checkout)
    parity_record(checkout, parity_case(), parity_case(case="mqa"))
    measured(checkout, "a")
    with pytest.raises(InvalidRecord, match="phase one: speed is missing: run `treadle bench matrix --record`"):
        check(checkout)
    measured(checkout, "b")
    assert {str(point.state) for point in check(checkout).values()} == {"proven"}
    assert standing(checkout)["parity"].why.endswith(": 2 passed, 0 failed")
    assert standing(checkout)["speed"].why.endswith(": b, 1 points, 0 per-slot fallbacks")
    signed = phases.sign(checkout, "one", role="models", identity="A. Person", note="n")
    assert signed.evidence[0] == runs.ledger_of(checkout, PARITY).records[-1].hash


def test_a_run_older_than_the_code_is_refused_in_one_line(checkout, monkeypatch, capsys):
    parity_record(checkout, parity_case())
    measured(checkout, "a", "b")
    check(checkout)
    commit(checkout.root, src__treadle__cli__file="no arithmetic")
    assert standing(checkout)["parity"].state == "proven"
    commit(checkout.root, src__treadle__parity__file="other cases")
    assert (standing(checkout)["parity"].state, standing(checkout)["speed"].state) == ("stale", "proven")
    monkeypatch.chdir(checkout.root)
    assert main(["gate", "check", "one"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("treadle: phase one: parity is stale: 2")
    assert "older than the code that it covers (native, src/treadle/plan, " in line
    assert line.endswith("; run `treadle parity --record`")
    with pytest.raises(InvalidRecord, match="parity is stale"):
        phases.sign(checkout, "one", role="models", identity="A. Person", note="n")


def test_one_model_measured_on_other_code_makes_the_benchmarks_stale(checkout):
    parity_record(checkout, parity_case())
    measured(checkout, "a", "b")
    commit(checkout.root, native__file="faster")
    measured(checkout, "b")
    assert standing(checkout)["speed"].state == "stale"
    measured(checkout, "a")
    assert standing(checkout)["speed"].state == "proven"


def test_a_run_that_failed_is_recorded_and_refused(checkout):
    parity_record(checkout, parity_case(), parity_case("failed", case="mqa"))
    with pytest.raises(InvalidRecord, match=r"parity is failed: .*: 1 passed, 1 failed: llama/mqa cpu exact f32"):
        check(checkout)
    parity_record(checkout, parity_case())
    measured(checkout, "a", per_slot_fallbacks=3)
    measured(checkout, "b")
    with pytest.raises(InvalidRecord, match=r"speed is failed: .*: a, 1 points, 3 per-slot fallbacks"):
        check(checkout)


def test_what_a_record_of_parity_says(checkout):
    cases = [
        parity_case(),
        parity_case(case="mqa", rel_err=3e-6),
        parity_case("failed", backend="reference", rel_err=None, noise=None, top1=None, identity=None),
    ]
    found = parity_record(checkout, *cases)
    assert (found.passed, found.failed) == (2, ["llama/gqa reference exact f32"])
    assert found.kernels == {"cpu": "k"}
    assert found.worst == {"cpu exact f32": {"rel_err": 3e-6, "noise": 1e-7, "top1": 1.0}, "reference exact f32": {}}
    assert found.commit == checkout.commit()
    assert found.tree == checkout.tree(PARITY.covers)
    for changed, field in (("plan_hash", "plans"), ("weights_hash", "weights")):
        other = parity_record(checkout, {**cases[0], changed: "x"}, *cases[1:])
        assert {name for name in ("plans", "weights", "matrix") if getattr(other, name) != getattr(found, name)} == {
            field
        }
    assert parity_record(checkout, *cases[::-1], matrix=b"other").matrix != found.matrix
    assert parity_record(checkout, *cases[::-1]).plans == found.plans


def test_a_record_says_which_machine_it_was():
    here = machine()
    assert here == machine()
    assert f"{os.cpu_count()} CPUs" in here and platform.machine() in here


def test_an_edited_run_is_refused(checkout, monkeypatch, capsys):
    parity_record(checkout, parity_case("failed"))
    path = checkout.folder / PARITY.file
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "failed": [], "passed": 1}) + "\n")
    monkeypatch.chdir(checkout.root)
    assert main(["gate", "check", "one"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "parity.jsonl:1: altered" in line


def test_an_item_of_the_checklist_takes_the_run_on_record(checkout, monkeypatch, capsys):
    """and runs its commands too; without a run that counts it fails with one line, and they are not run."""
    (checkout.folder / "checklist.toml").write_text(CHECKLIST)
    monkeypatch.chdir(checkout.root)

    def row():
        code = main(["gate", "checklist"])
        title, *lines, _ = capsys.readouterr().out.splitlines()
        return code, title.split("  ")[1].strip(), [line.strip() for line in lines]

    assert row() == (1, "NOT PROVEN", ["parity on record: missing: run `treadle parity --record`"])
    parity_record(checkout, parity_case())
    code, mark, (of_record, of_command) = row()
    assert (code, mark, of_command) == (0, "proven", "`echo alive`: alive")
    assert of_record.startswith("parity on record: 2") and of_record.endswith(": 1 passed, 0 failed")

    parity_record(checkout, parity_case("failed"))
    code, mark, (line,) = row()
    assert (code, mark) == (1, "NOT PROVEN")
    assert line.startswith("parity on record: failed: ") and line.endswith("1 failed: llama/gqa cpu exact f32")
    parity_record(checkout, parity_case())
    commit(checkout.root, native__file="faster")
    code, mark, (line,) = row()
    assert line.startswith("parity on record: stale: ") and line.endswith("; run `treadle parity --record`")

    path = checkout.folder / PARITY.file
    path.write_text(path.read_text().replace("llama/gqa", "llama/mqa"))
    code, mark, (line,) = row()
    assert (code, mark) == (1, "NOT PROVEN") and "parity.jsonl:2: altered" in line


def test_a_benchmark_file_that_cannot_be_read_is_named(checkout):
    parity_record(checkout, parity_case())
    (checkout.folder / "benchmarks.toml").write_text("[")
    with pytest.raises(InvalidFile, match=r"benchmarks\.toml"):
        standing(checkout)


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        ('record = "parity"\ncommand = ["true"]\ncovers = ["src"]', "either a command"),
        ('command = ["true"]', "either a command"),
        ("", "either a command"),
        ('record = "weather"', "weather"),
    ],
)
def test_a_criterion_is_a_command_or_a_record(criterion, said, checkout):
    text = f'{PHASES}[[phase.criterion]]\nid = "x"\nwhat = "y"\n{criterion}\n'
    (checkout.folder / "phases.toml").write_text(text)
    with pytest.raises(InvalidFile, match=said):
        phases.read_phases(checkout)


@pytest.mark.parametrize("part", [["--family", "llama"], ["--backend", "cpu"], ["--flips"], ["somewhere"]])
def test_a_part_of_the_matrix_is_not_recorded(part, checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout.root)
    assert main(["parity", "--record", *part]) == 1
    assert "--record keeps what came of the whole matrix" in capsys.readouterr().err


def test_what_runs_is_made_of_the_sources(checkout):
    """A checkout that has a package of its own is not the one that runs here."""
    own = Checkout.around(Path(__file__).parent)
    (checkout.root / "src" / "treadle" / "__init__.py").touch()
    with pytest.raises(InvalidRecord, match=f"{own.root / 'src/treadle'} runs, and the record would be about"):
        checkout.begin(["native"])


def test_a_core_older_than_its_sources_is_not_recorded(checkout, monkeypatch):
    package = checkout.root / "src" / "treadle"
    (package / "__init__.py").touch()
    commit(checkout.root)
    monkeypatch.setattr("treadle.__file__", str(package / "__init__.py"))
    checkout.begin(["src"])
    source = checkout.root / "native" / "a.cpp"
    source.touch()
    commit(checkout.root)
    with pytest.raises(InvalidRecord, match=r"native/a\.cpp is newer than the native core: run `make native`"):
        checkout.begin(["src"])
    (checkout.root / ".venv").mkdir()
    (checkout.root / ".venv" / ".native").touch()  # as make does where there was nothing to build
    checkout.begin(["src"])


def test_the_command_records_all_that_it_ran(checkout, monkeypatch):
    """on one case of the matrix, in a checkout without sources of its own."""
    from treadle.parity import matrix

    whole = matrix.read_matrix()
    small = matrix.Matrix(whole.defaults, (whole.select("llama", "gqa")[0],))
    monkeypatch.setattr(matrix, "read_matrix", lambda: small)
    monkeypatch.chdir(checkout.root)
    assert main(["parity", "--record", "--json"]) == 0
    (found,) = runs.ledger_of(checkout, PARITY).records
    assert (found.passed, found.failed) == (5, [])
    assert set(found.kernels) == {"cpu", "reference"}
    assert set(found.versions) >= {"torch", "transformers"}
    assert found.worst["cpu exact f32"]["rel_err"] < 1e-4
