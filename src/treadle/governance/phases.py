"""Phases: exit criteria as commands, who signs, how to go back; and what the records say of them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from treadle.errors import InvalidFile, InvalidRecord, InvalidRequest
from treadle.governance.ledger import Evidence, Ledger, Signature
from treadle.governance.sources import Checkout, machine, now

RECORDS: Final = "records.jsonl"


class Criterion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`command` proves it by exit code 0. `covers`: paths; a change in them makes evidence stale."""

    id: str
    what: str
    command: list[str]
    covers: list[str]


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
    covers = sorted({path for criterion in phase.criterion for path in criterion.covers})
    yield Criterion("rollback", phase.rollback, phase.rollback_proof, covers)


def standing(checkout: Checkout, ledger: Ledger, phase: Phase) -> list[Standing]:
    return [_standing(checkout, ledger, phase, criterion) for criterion in criteria(phase)]


def _standing(checkout: Checkout, ledger: Ledger, phase: Phase, criterion: Criterion) -> Standing:
    found = [
        record
        for record in ledger.records
        if isinstance(record, Evidence) and (record.phase, record.criterion) == (phase.name, criterion.id)
    ]
    if not found:
        return Standing(criterion.id, criterion.what, State.MISSING, f"run `treadle gate check {phase.name}`")
    last = found[-1]
    about = f"{last.date}, commit {last.commit[:10]}"
    try:
        tree = checkout.tree(criterion.covers)
    except InvalidRecord as error:
        return Standing(criterion.id, criterion.what, State.STALE, str(error), last.hash)
    if last.command != criterion.command:
        return Standing(criterion.id, criterion.what, State.STALE, f"{about}: was proven by another command", last.hash)
    if last.tree != tree:
        why = f"{about}: older than the code that it covers ({', '.join(criterion.covers)})"
        return Standing(criterion.id, criterion.what, State.STALE, why, last.hash)
    if last.exit_code:
        return Standing(criterion.id, criterion.what, State.FAILED, f"{about}: {last.output}", last.hash)
    return Standing(criterion.id, criterion.what, State.PROVEN, f"{about}: {last.output}", last.hash)


def check(checkout: Checkout, name: str, say: Callable[[str], None]) -> list[Standing]:
    """Runs every criterion of a phase and records what came of it, failures too.

    Raises InvalidRecord (changes that are not committed), InvalidRequest.
    """
    phase, ledger = phase_named(checkout, name), ledger_of(checkout)
    trees = {criterion.id: checkout.tree(criterion.covers) for criterion in criteria(phase)}
    for criterion in criteria(phase):
        say(f"{criterion.id}: {' '.join(criterion.command)}")
        ran = checkout.run(criterion.command)
        ledger.append(
            Evidence(
                number=0,
                previous="",
                date=now(),
                phase=phase.name,
                commit=checkout.commit(),
                tree=trees[criterion.id],
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
    open_points = [point for point in found if point.state is not State.PROVEN]
    if open_points:
        point = open_points[0]
        raise InvalidRecord(f"phase {name}: {point.criterion} is {point.state}: {point.why}")
    record = ledger.append(
        Signature(
            number=0,
            previous="",
            date=now(),
            phase=name,
            commit=checkout.commit(),
            tree=checkout.tree(sorted({path for criterion in phase.criterion for path in criterion.covers})),
            role=role,
            identity=identity.strip(),
            note=note.strip(),
            evidence=[point.hash for point in found],
        )
    )
    assert isinstance(record, Signature)
    return record


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
