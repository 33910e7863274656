"""Phases and their records on a small checkout: what is refused, and what a record that was touched does."""

import json
from pathlib import Path

import pytest
from tests.governance.checkouts import checkout_with, commit

from treadle.cli.main import main
from treadle.errors import InvalidFile, InvalidRecord, InvalidRequest
from treadle.governance import checklist, phases
from treadle.governance.ledger import Ledger
from treadle.governance.sources import Checkout

PHASES = """
[[phase]]
name = "one"
title = "First"
roles = ["models", "compute"]
rollback = "the flag --old"
rollback_proof = ["true"]
[[phase.criterion]]
id = "tests"
what = "tests pass"
command = ["sh", "-c", "echo 3 passed; exit $(cat src/code)"]
covers = ["src"]
[[phase.criterion]]
id = "docs"
what = "docs are there"
command = ["test", "-f", "docs/a.md"]
covers = ["docs"]
"""


@pytest.fixture
def checkout(tmp_path):
    found = checkout_with(tmp_path, {"phases.toml": PHASES}, ["docs/a.md"])
    commit(tmp_path, src__code="0")
    return found


def states(checkout):
    found = phases.standing(checkout, phases.ledger_of(checkout), phases.phase_named(checkout, "one"))
    return {criterion: str(point.state) for criterion, point in found.items()}


def check(checkout):
    return phases.check(checkout, "one", lambda text: None)


def sign(checkout, role="models"):
    return phases.sign(checkout, "one", role=role, identity="A. Person", note="looked at it")


def lines(checkout):
    return phases.records_path(checkout).read_text().splitlines(keepends=True)


def write(checkout, text):
    phases.records_path(checkout).write_text("".join(text))


def test_a_phase_is_missing_evidence_until_it_is_checked(checkout):
    assert states(checkout) == {"tests": "missing", "docs": "missing", "rollback": "missing"}
    with pytest.raises(InvalidRecord, match="tests is missing: run `treadle gate check one`"):
        sign(checkout)
    assert {str(point.state) for point in check(checkout).values()} == {"proven"}
    assert check(checkout)["tests"].why.endswith(": 3 passed")


def test_a_failure_is_recorded_and_cannot_be_signed(checkout):
    commit(checkout.root, src__code="4")
    check(checkout)
    assert states(checkout) == {"tests": "failed", "docs": "proven", "rollback": "proven"}
    with pytest.raises(InvalidRecord, match="tests is failed"):
        sign(checkout)


def test_signatures_stand_for_the_evidence_they_were_given_on(checkout):
    check(checkout)
    record = sign(checkout)
    ledger, phase = phases.ledger_of(checkout), phases.phase_named(checkout, "one")
    found = phases.standing(checkout, ledger, phase)
    assert record.evidence == [point.hash for point in found.values()]
    assert phases.signatures(ledger, phase, found)["models"].startswith("signed by A. Person on ")
    assert phases.signatures(ledger, phase, found)["compute"] == "not signed"
    check(checkout)
    ledger = phases.ledger_of(checkout)
    found = phases.standing(checkout, ledger, phase)
    assert phases.signatures(ledger, phase, found)["models"].endswith("on other evidence")


def test_evidence_is_stale_once_what_it_covers_has_changed(checkout):
    check(checkout)
    commit(checkout.root, docs__b="more")
    assert states(checkout) == {"tests": "proven", "docs": "stale", "rollback": "stale"}
    with pytest.raises(InvalidRecord, match=r"docs is stale: .* older than the code that it covers \(docs\)"):
        sign(checkout)


def test_changes_that_are_not_committed_make_evidence_stale_and_are_not_checked(checkout):
    check(checkout)
    (checkout.root / "src" / "code").write_text("1")
    assert states(checkout)["tests"] == "stale"
    with pytest.raises(InvalidRecord, match="src/code: has changes that are not committed"):
        check(checkout)


def test_what_changes_while_a_command_runs_is_not_recorded(checkout):
    text = (checkout.folder / "phases.toml").read_text().replace("exit $(cat src/code)", "git rm -q src/code; exit 0")
    (checkout.folder / "phases.toml").write_text(text)
    with pytest.raises(InvalidRecord, match="src/code: has changes that are not committed"):
        check(checkout)
    assert not phases.ledger_of(checkout).records
    commit(checkout.root, src__code="0")
    about = checkout.begin(["src"])
    commit(checkout.root, src__code="1")
    with pytest.raises(InvalidRecord, match="src changed while it ran: nothing is recorded; run it again"):
        checkout.stamp(about)


def test_evidence_is_about_paths_that_exist(checkout):
    with pytest.raises(InvalidRequest, match="nowhere/at/all: no such path in the commit"):
        checkout.tree(["src/", "nowhere/at/all"])
    assert checkout.tree(["src/"]) == checkout.tree(["src"]) != checkout.tree(["src/code"])


def test_another_command_needs_other_evidence(checkout):
    check(checkout)
    text = (checkout.folder / "phases.toml").read_text().replace('"test", "-f", "docs/a.md"', '"true"')
    (checkout.folder / "phases.toml").write_text(text)
    assert states(checkout) == {"tests": "proven", "docs": "missing", "rollback": "proven"}


@pytest.mark.parametrize("field", ["exit_code", "seconds", "output", "commit", "tree", "criterion", "date"])
def test_a_record_edited_by_hand_is_refused(field, checkout):
    check(checkout)
    text = lines(checkout)
    record = json.loads(text[1])
    record[field] = record[field] + 1 if isinstance(record[field], (int, float)) else f"{record[field]}x"
    text[1] = json.dumps(record) + "\n"
    write(checkout, text)
    with pytest.raises(InvalidRecord, match=r"records.jsonl:2: altered"):
        states(checkout)


def test_records_that_were_taken_out_swapped_or_cut_are_refused(checkout):
    check(checkout)
    text = lines(checkout)
    for changed, message in (
        (text[1:], "records.jsonl:1: does not follow"),
        ([text[0], text[2]], "records.jsonl:2: does not follow"),
        ([text[1], text[0], text[2]], "records.jsonl:1: does not follow"),
        ([*text, text[2]], "records.jsonl:4: does not follow"),
        ([*text[:2], text[2][:-1]], "its last line is cut off"),
        ([*text, "{}\n"], "records.jsonl:4: not a record"),
    ):
        write(checkout, changed)
        with pytest.raises(InvalidRecord, match=message):
            Ledger(phases.records_path(checkout))


def test_two_writers_cannot_fork_the_chain(checkout):
    check(checkout)
    one, other = phases.ledger_of(checkout), phases.ledger_of(checkout)
    one.append(one.records[0])
    with pytest.raises(InvalidRecord, match="another process"):
        other.append(other.records[0])


def test_who_may_sign(checkout):
    check(checkout)
    with pytest.raises(InvalidRequest, match="role 'ceo' does not sign phase one; roles: models, compute"):
        sign(checkout, "ceo")
    with pytest.raises(InvalidRequest, match="phase 'two' is not known; known: one"):
        phases.sign(checkout, "two", role="models", identity="a", note="b")
    with pytest.raises(InvalidRequest, match="--as"):
        phases.sign(checkout, "one", role="models", identity=" ", note="b")


def test_bad_phases_are_named(checkout):
    path = checkout.folder / "phases.toml"
    for text, message in (
        ("[", "phases.toml"),
        ("[[phase]]\nname = 3\n", "phases.toml"),
        ("x = 1\n", "unknown field"),
        (PHASES + PHASES, "two phases are named 'one'"),
        (PHASES.replace('id = "docs"', 'id = "tests"'), "two criteria are named 'tests'"),
        (PHASES.replace('id = "docs"', 'id = "rollback"'), "two criteria are named 'rollback'"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidFile, match=message):
            phases.read_phases(checkout)
    with pytest.raises(InvalidRequest, match="lies in no checkout"):
        Checkout.around(Path("/"))


def test_the_command(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout.root / "src")
    assert main(["gate", "status"]) == 1
    assert "missing  tests: tests pass" in capsys.readouterr().out
    assert main(["gate", "check", "one"]) == 0
    assert "proven   docs" in capsys.readouterr().out
    assert main(["gate", "sign", "one", "--role", "models", "--as", "A. Person"]) == 1
    assert "gate sign needs --note" in capsys.readouterr().err
    assert main(["gate", "sign", "one", "--role", "models", "--as", "A. Person", "--note", "n"]) == 0
    assert "A. Person signed one as models; record 4" in capsys.readouterr().out
    assert main(["gate", "status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["phases"][0]
    assert told["signatures"]["models"].startswith("signed by A. Person")
    assert main(["gate", "check"]) == 1
    assert "needs the name of a phase" in capsys.readouterr().err


CHECKLIST = """
[[item]]
number = 1
title = "One"
decided = "so"
lives = ["src/code"]
proofs = [["echo", "all 5 hold"], ["echo", "and 2"]]
[[item]]
number = 2
title = "Two"
decided = "so"
lives = ["docs"]
proofs = [["true"], ["sh", "-c", "echo broken; exit 3"], ["echo", "never run"]]
"""


def test_the_checklist_runs_what_proves_it(checkout, monkeypatch, capsys):
    (checkout.folder / "checklist.toml").write_text(CHECKLIST)
    one, two = checklist.prove(checkout, (), lambda text: None)
    assert (one.proven, one.told) == (True, ["`echo 'all 5 hold'`: all 5 hold", "`echo 'and 2'`: and 2"])
    assert (two.proven, two.told) == (False, ["`true`: ", "`sh -c 'echo broken; exit 3'` ended with 3: broken"])
    monkeypatch.chdir(checkout.root)
    assert main(["gate", "checklist"]) == 1
    out = capsys.readouterr().out
    assert "NOT PROVEN  Two" in out
    assert out.splitlines()[-1] == "1 of 2 proven; 2: `sh -c 'echo broken; exit 3'` ended with 3: broken"
    assert main(["gate", "checklist", "--only", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["proven"] is True
    with pytest.raises(InvalidRequest, match="item 7 is not on the checklist; it has 2"):
        checklist.prove(checkout, (7,), lambda text: None)


def test_a_program_that_is_not_there_leaves_the_other_rows(checkout):
    (checkout.folder / "checklist.toml").write_text(CHECKLIST.replace('["echo", "and 2"]', '["no-such-program"]', 1))
    one, two = checklist.prove(checkout, (), lambda text: None)
    assert one.told[-1] == "`no-such-program` ended with 127: no-such-program: no such program"
    assert not one.proven and two.told


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("number = 2", "number = 3", "not numbered"),
        ('lives = ["docs"]', 'lives = ["nowhere"]', "item 2 lives in nowhere, which does not exist"),
        ('proofs = [["echo", "all 5 hold"], ["echo", "and 2"]]', "proofs = []", "item 1 has no proof"),
        ("title", "titel", "checklist.toml"),
    ],
)
def test_a_bad_checklist_is_named(old, new, message, checkout):
    (checkout.folder / "checklist.toml").write_text(CHECKLIST.replace(old, new))
    with pytest.raises(InvalidFile, match=message):
        checklist.read_checklist(checkout)


def test_the_projects_own_files_are_sound():
    """Fifteen items, all in places that exist; phases whose paths exist, the files of their own commands among them."""
    own = Checkout.around(Path(__file__).resolve().parent)
    assert len(checklist.read_checklist(own)) == 15
    for phase in phases.read_phases(own).values():
        assert phase.roles
        for criterion in phases.criteria(phase):
            assert all((own.root / path).exists() for path in criterion.covers), criterion.id
            for word in criterion.command:
                if "/" in word and criterion.id != "rollback":
                    assert any(f"{word}/".startswith(f"{path}/") for path in criterion.covers), (
                        f"{criterion.id}: {word}"
                    )
    Ledger(phases.records_path(own))
