"""Phases: exit criteria as commands, who signs, how to go back; and what the records say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from treadle.errors import InvalidRecord, InvalidRequest
from treadle.governance import evidence
from treadle.governance.evidence import Standing, State
from treadle.governance.ledger import Evidence, Ledger, Signature
from treadle.governance.runs import KINDS, RunKind
from treadle.governance.sources import PHASES, Checkout, machine, read_toml

RECORDS: Final = "records.jsonl"


class Criterion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Proven by `command`, with exit code 0, or by what `record` names: the last run of that kind on record.

    `covers`: paths; a change in them makes evidence stale. A kind of record has its own.
    """

    id: str
    what: str
    command: list[str] = []
    covers: list[str] = []
    record: RunKind | None = None

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

    def __post_init__(self) -> None:
        refuse_twins("criteria", [criterion.id for criterion in criteria(self)])


class Phases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    phase: list[Phase]

    def __post_init__(self) -> None:
        refuse_twins("phases", [phase.name for phase in self.phase])


def refuse_twins(what: str, names: Sequence[str]) -> None:
    """Raises ValueError for a name that is there twice."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two {what} are named {name!r}")


def read_phases(checkout: Checkout) -> dict[str, Phase]:
    """By name. Raises InvalidFile."""
    phases = read_toml(checkout.folder / PHASES, Phases).phase
    return {phase.name: phase for phase in phases}


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


def standing(checkout: Checkout, ledger: Ledger, phase: Phase) -> dict[str, Standing]:
    """By criterion."""
    return {criterion.id: _standing(checkout, ledger, phase, criterion) for criterion in criteria(phase)}


def _standing(checkout: Checkout, ledger: Ledger, phase: Phase, criterion: Criterion) -> Standing:
    if criterion.record is not None:
        return evidence.of_run(checkout, criterion.record)
    name = (phase.name, criterion.id, criterion.command)
    found = [r for r in ledger.records if isinstance(r, Evidence) and (r.phase, r.criterion, r.command) == name]
    return evidence.judge(checkout, found[-1:], criterion.covers, f"treadle gate check {phase.name}")


def check(checkout: Checkout, name: str, say: Callable[[str], None]) -> dict[str, Standing]:
    """Runs every criterion of a phase that is a command, and records what came of it, failures too.

    Raises InvalidRecord (changes that are not committed, or made while a command ran; a criterion that is a record
    which is missing, failed or stale, before anything is run), InvalidRequest.
    """
    phase, ledger = phase_named(checkout, name), ledger_of(checkout)
    commands = [criterion for criterion in criteria(phase) if criterion.record is None]
    checkout.begin(covered(phase))
    for criterion in criteria(phase):
        if criterion.record is not None:
            _refuse(phase, {criterion.id: evidence.of_run(checkout, criterion.record)})
    for criterion in commands:
        say(f"{criterion.id}: {' '.join(criterion.command)}")
        about = checkout.begin(criterion.covers)
        ran = checkout.run(criterion.command)
        ledger.append(
            Evidence(
                **checkout.stamp(about, phase.name),
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
            **checkout.stamp(checkout.sources(covered(phase)), name),
            role=role,
            identity=identity.strip(),
            note=note.strip(),
            evidence=[point.hash for point in found.values()],
        )
    )
    assert isinstance(record, Signature)
    return record


def _refuse(phase: Phase, found: Mapping[str, Standing]) -> None:
    """Raises InvalidRecord for the first that is not proven."""
    for name, point in found.items():
        if point.state is not State.PROVEN:
            raise InvalidRecord(f"phase {phase.name}: {name} is {point.state}: {point.why}")


def signatures(ledger: Ledger, phase: Phase, found: Mapping[str, Standing]) -> dict[str, str]:
    """Role -> who signed on the evidence that stands now, or why nobody has."""
    answer = {}
    hashes = [point.hash for point in found.values()]
    proven = all(point.state is State.PROVEN for point in found.values())
    for role in phase.roles:
        signed = [r for r in ledger.records if isinstance(r, Signature) and (r.phase, r.role) == (phase.name, role)]
        if not signed:
            answer[role] = "not signed"
        elif signed[-1].evidence != hashes or not proven:
            answer[role] = f"signed by {signed[-1].identity} on {signed[-1].date}, on other evidence"
        else:
            answer[role] = f"signed by {signed[-1].identity} on {signed[-1].date}"
    return answer
