"""Phases: exit criteria as commands, who signs, how to go back; and what the records say of them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

import msgspec

from treadle.errors import InvalidFile, InvalidRecord, InvalidRequest
from treadle.governance import runs
from treadle.governance.ledger import Entry, Evidence, Ledger, Signature
from treadle.governance.runs import KINDS
from treadle.governance.sources import Checkout, machine

RECORDS: Final = "records.jsonl"


class Criterion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Proven by `command`, with exit code 0, or by what `record` names: the last run of that kind on record.

    `covers`: paths; a change in them makes evidence stale. A kind of record has its own.
    """

    id: str
    what: str
    command: list[str] = []
    covers: list[str] = []
    record: Literal["parity", "benchmarks"] | None = None

    def __post_init__(self) -> None:
        if (self.record is None) != bool(self.command) or bool(self.command) != bool(self.covers):
            raise ValueError(f"criterion {self.id!r}: either a command and what it covers, or a record")

    @property
    def paths(self) -> Sequence[str]:
        """What evidence of it is about."""
        return self.covers if self.record is None else KINDS[self.record].covers


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`roles` sign it. `rollback`: what restores the state before, and the command that exercises it."""

    name: str
    title: str
    roles: list[str]
    rollback: str
    rollback_proof: list[str]
    criterion: list[Criterion]


class Phases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    phase: list[Phase]


class State(StrEnum):
    PROVEN = "proven"
    MISSING = "missing"
    FAILED = "failed"
    STALE = "stale"


class Standing(msgspec.Struct, frozen=True):
    """What the records say of one criterion. `why`: one line; `hash`: of the evidence there is."""

    criterion: str
    what: str
    state: State
    why: str
    hash: str = ""


def read_phases(checkout: Checkout) -> dict[str, Phase]:
    """By name. Raises InvalidFile."""
    path = checkout.folder / "phases.toml"
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Phases)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidFile(f"{path}: {error}") from None
    return {phase.name: phase for phase in found.phase}


def phase_named(checkout: Checkout, name: str) -> Phase:
    phases = read_phases(checkout)
    if name not in phases:
        raise InvalidRequest(f"phase {name!r} is not known; known: {', '.join(phases)}")
    return phases[name]


def records_path(checkout: Checkout) -> Path:
    return checkout.folder / RECORDS


def ledger_of(checkout: Checkout) -> Ledger:
    return Ledger(records_path(checkout))


def criteria(phase: Phase) -> Iterator[Criterion]:
    """The exit criteria, and that the way back works."""
    yield from phase.criterion
    yield Criterion("rollback", phase.rollback, phase.rollback_proof, covered(phase))


def covered(phase: Phase) -> list[str]:
    """The paths that any of its criteria is about."""
    return sorted({path for criterion in phase.criterion for path in criterion.paths})


def standing(checkout: Checkout, ledger: Ledger, phase: Phase) -> list[Standing]:
    return [_standing(checkout, ledger, phase, criterion) for criterion in criteria(phase)]


def _standing(checkout: Checkout, ledger: Ledger, phase: Phase, criterion: Criterion) -> Standing:
    how = f"treadle gate check {phase.name}" if criterion.record is None else KINDS[criterion.record].command
    last: Entry | None = None

    def point(state: State, why: str) -> Standing:
        return Standing(criterion.id, criterion.what, state, why, "" if last is None else last.hash)

    try:
        tree, dirty = checkout.tree(criterion.paths), ""
    except InvalidRecord as error:
        tree, dirty = "", str(error)
    last = _evidence(checkout, ledger, phase, criterion, tree)
    if last is None:
        return point(State.MISSING, f"run `{how}`")
    if dirty:
        return point(State.STALE, dirty)
    about = f"{last.date}, commit {last.commit[:10]}"
    if isinstance(last, Evidence) and last.command != criterion.command:
        return point(State.STALE, f"{about}: was proven by another command; run `{how}`")
    if last.tree != tree:
        older = f"older than the code that it covers ({', '.join(criterion.paths)})"
        return point(State.STALE, f"{about}: {older}; run `{how}`")
    passed, told = runs.outcome(last)
    return point(State.PROVEN if passed else State.FAILED, f"{about}: {told}")


def _evidence(checkout: Checkout, ledger: Ledger, phase: Phase, criterion: Criterion, tree: str) -> Entry | None:
    """The record that decides a criterion, if there is any."""
    if criterion.record is not None:
        return runs.evidence(checkout, criterion.record, tree)
    name = (phase.name, criterion.id)
    found = [r for r in ledger.records if isinstance(r, Evidence) and (r.phase, r.criterion) == name]
    return found[-1] if found else None


def check(checkout: Checkout, name: str, say: Callable[[str], None]) -> list[Standing]:
    """Runs every criterion of a phase that is a command, and records what came of it, failures too.

    Raises InvalidRecord (changes that are not committed; a criterion that is a record which is missing, failed or
    stale, before anything is run), InvalidRequest.
    """
    phase, ledger = phase_named(checkout, name), ledger_of(checkout)
    commands = [criterion for criterion in criteria(phase) if criterion.record is None]
    checkout.begin(covered(phase))
    trees = {criterion.id: checkout.tree(criterion.covers) for criterion in commands}
    for criterion in criteria(phase):
        if criterion.record is not None:
            _refuse(phase, [_standing(checkout, ledger, phase, criterion)])
    for criterion in commands:
        say(f"{criterion.id}: {' '.join(criterion.command)}")
        ran = checkout.run(criterion.command)
        ledger.append(
            Evidence(
                **checkout.stamp(trees[criterion.id], phase.name),
                criterion=criterion.id,
                command=criterion.command,
                exit_code=ran.exit_code,
                seconds=ran.seconds,
                output=ran.output,
                machine=machine(),
            )
        )
    return standing(checkout, ledger, phase)


def sign(checkout: Checkout, name: str, *, role: str, identity: str, note: str) -> Signature:
    """Records that a role signs a phase. Raises InvalidRequest (no such role), InvalidRecord (evidence is missing,
    failed, stale or altered)."""
    phase, ledger = phase_named(checkout, name), ledger_of(checkout)
    if role not in phase.roles:
        raise InvalidRequest(f"role {role!r} does not sign phase {name}; roles: {', '.join(phase.roles)}")
    if not identity.strip() or not note.strip():
        raise InvalidRequest("a signature needs who signs (--as) and why (--note)")
    found = standing(checkout, ledger, phase)
    _refuse(phase, found)
    record = ledger.append(
        Signature(
            **checkout.stamp(checkout.tree(covered(phase)), name),
            role=role,
            identity=identity.strip(),
            note=note.strip(),
            evidence=[point.hash for point in found],
        )
    )
    assert isinstance(record, Signature)
    return record


def _refuse(phase: Phase, found: Sequence[Standing]) -> None:
    """Raises InvalidRecord for the first that is not proven."""
    for point in found:
        if point.state is not State.PROVEN:
            raise InvalidRecord(f"phase {phase.name}: {point.criterion} is {point.state}: {point.why}")


def signatures(ledger: Ledger, phase: Phase, found: list[Standing]) -> dict[str, str]:
    """Role -> who signed on the evidence that stands now, or why nobody has."""
    answer = {}
    hashes = [point.hash for point in found]
    for role in phase.roles:
        signed = [r for r in ledger.records if isinstance(r, Signature) and (r.phase, r.role) == (phase.name, role)]
        if not signed:
            answer[role] = "not signed"
        elif signed[-1].evidence != hashes or any(point.state is not State.PROVEN for point in found):
            answer[role] = f"signed by {signed[-1].identity} on {signed[-1].date}, on other evidence"
        else:
            answer[role] = f"signed by {signed[-1].identity} on {signed[-1].date}"
    return answer
