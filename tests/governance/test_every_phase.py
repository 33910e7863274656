"""Every phase of the project from nothing to signed, in a checkout that has its paths: with what the project's own file
asks for, only that commands end as a test wants instead of taking minutes."""

import json
from pathlib import Path

import pytest
from tests.governance.checkouts import bench_record, checkout_with, commit, parity_case, parity_record

from treadle.cli.main import main
from treadle.errors import InvalidRecord
from treadle.governance import phases, runs
from treadle.governance.sources import Checkout, Ran

OWN = Checkout.around(Path(__file__).resolve().parent)
PHASES = phases.read_phases(OWN)


@pytest.fixture
def ran(monkeypatch):
    """Commands that were run; the last words of one that shall fail may be put under "fails"."""
    found = {"commands": [], "fails": None}

    def run(checkout, command):
        found["commands"].append(list(command))
        return Ran(int(list(command) == found["fails"]), 0.1, "told")

    monkeypatch.setattr(Checkout, "run", run)
    return found


@pytest.fixture(params=list(PHASES))
def phase(request):
    return PHASES[request.param]


@pytest.fixture
def checkout(tmp_path, phase, ran):
    files = {name: (OWN.folder / name).read_text() for name in ("phases.toml", "benchmarks.toml")}
    paths = {path for criterion in phases.criteria(phase) for path in criterion.paths}
    return checkout_with(tmp_path, files, sorted(paths.union(*(kind.covers for kind in runs.KINDS.values()))))


def record_all(checkout):
    import tomllib

    parity_record(checkout, parity_case())
    for model in tomllib.loads((checkout.folder / "benchmarks.toml").read_text())["model"]:
        bench_record(checkout, model["name"])


def sign(checkout, phase, role):
    return phases.sign(checkout, phase.name, role=role, identity="A. Person", note="looked at it")


def states(checkout, phase):
    found = phases.standing(checkout, phases.ledger_of(checkout), phase)
    return {criterion: str(point.state) for criterion, point in found.items()}


def signed(checkout, phase):
    ledger = phases.ledger_of(checkout)
    return phases.signatures(ledger, phase, phases.standing(checkout, ledger, phase))


def test_missing_checked_signed_stale(phase, checkout, ran, monkeypatch, capsys):
    assert set(states(checkout, phase).values()) == {"missing"}
    with pytest.raises(InvalidRecord, match=f"phase {phase.name}: .* is missing: run `treadle "):
        sign(checkout, phase, phase.roles[0])
    record_all(checkout)
    commands = [criterion.command for criterion in phases.criteria(phase) if criterion.record is None]
    monkeypatch.chdir(checkout.root)
    assert main(["gate", "check", phase.name]) == 0
    assert ran["commands"] == commands
    for role in phase.roles:
        words = ["--role", role, "--as", f"{role} owner", "--note", "looked at it"]
        assert main(["gate", "sign", phase.name, *words]) == 0
    assert set(signed(checkout, phase)) == set(phase.roles)
    for role, told in signed(checkout, phase).items():
        assert told.startswith(f"signed by {role} owner on ") and "other evidence" not in told
    assert main(["gate", "status", phase.name]) == 0

    path = next(phases.criteria(phase)).paths[0]
    file = checkout.root / path
    commit(checkout.root, **{(path if file.is_file() else f"{path}/file").replace("/", "__"): "changed"})
    assert "stale" in states(checkout, phase).values()
    assert all("on other evidence" in told for told in signed(checkout, phase).values())
    capsys.readouterr()
    assert main(["gate", "sign", phase.name, "--role", phase.roles[0], "--as", "A. Person", "--note", "n"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is stale: " in line and "older than the code that it covers" in line
    assert main(["gate", "status", phase.name]) == 1


def test_every_command_that_fails_keeps_the_phase_open(phase, checkout, ran):
    record_all(checkout)
    for criterion in phases.criteria(phase):
        if criterion.record is None:
            ran["fails"] = criterion.command
            phases.check(checkout, phase.name, lambda text: None)
            found = states(checkout, phase)
            assert [name for name, state in found.items() if state != "proven"] == [criterion.id]
            with pytest.raises(InvalidRecord, match=f"{criterion.id} is failed: .*: told"):
                sign(checkout, phase, phase.roles[0])


def test_every_file_of_records_is_refused_once_it_was_edited(phase, checkout, ran):
    record_all(checkout)
    phases.check(checkout, phase.name, lambda text: None)
    kinds = [runs.KINDS[c.record].file for c in phases.criteria(phase) if c.record is not None]
    for name in (phases.RECORDS, *kinds):
        path = checkout.folder / name
        text = path.read_text()
        first, *rest = text.splitlines(keepends=True)
        record = json.loads(first)
        path.write_text("".join([json.dumps({**record, "date": "2020-01-01T00:00:00Z"}) + "\n", *rest]))
        with pytest.raises(InvalidRecord, match=rf"{name}:1: altered"):
            sign(checkout, phase, phase.roles[0])
        path.write_text(text)
    assert sign(checkout, phase, phase.roles[0]).evidence
