"""What records prove today: each is proven, missing, failed or stale, with the reason in one line."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from treadle.errors import InvalidRecord
from treadle.governance import runs
from treadle.governance.ledger import Benchmark, Entry, Evidence, Parity
from treadle.governance.runs import KINDS, RunKind
from treadle.governance.sources import Checkout


class State(StrEnum):
    PROVEN = "proven"
    MISSING = "missing"
    FAILED = "failed"
    STALE = "stale"


class Standing(msgspec.Struct, frozen=True):
    """`why`: one line; `hash`: of the newest record that it rests on."""

    state: State
    why: str
    hash: str = ""


def of_run(checkout: Checkout, kind: RunKind) -> Standing:
    """Of the last run of a kind. Raises InvalidRecord where its file was altered."""
    found = KINDS[kind]
    return judge(checkout, runs.latest(checkout, kind), found.covers, found.command)


def judge(checkout: Checkout, records: Sequence[Entry], covers: Sequence[str], remedy: str) -> Standing:
    """Of records that prove something together: the first that is stale or failed decides. None at all is missing.

    `covers`: the paths they are about, whose content must be what it was; `remedy`: the command that makes new ones.
    """
    if not records:
        return Standing(State.MISSING, f"run `{remedy}`")
    newest = max(records, key=lambda record: record.number)
    try:
        tree = checkout.tree(covers)
    except InvalidRecord as error:
        return Standing(State.STALE, str(error), newest.hash)
    for record in records:
        if record.tree != tree:
            older = f"older than the code that it covers ({', '.join(covers)})"
            return Standing(State.STALE, f"{_about(record)}: {older}; run `{remedy}`", newest.hash)
    failed = next((record for record in records if not outcome(record)[0]), None)
    state, record = (State.PROVEN, newest) if failed is None else (State.FAILED, failed)
    return Standing(state, f"{_about(record)}: {outcome(record)[1]}", newest.hash)


def outcome(record: Entry) -> tuple[bool, str]:
    """Whether it proves something, and what it says in a line."""
    if isinstance(record, Evidence):
        return record.exit_code == 0, record.output
    if isinstance(record, Parity):
        counts = f"{record.passed} passed, {len(record.failed)} failed"
        return not record.failed and record.passed > 0, ": ".join([counts, *record.failed[:1]])
    if isinstance(record, Benchmark):
        loops = record.report["per_slot_fallbacks"]
        return loops == 0, f"{record.model}, {len(record.report['points'])} points, {loops} per-slot fallbacks"
    raise TypeError(f"{type(record).__name__} is no evidence")


def _about(record: Entry) -> str:
    return f"{record.date}, commit {record.commit[:10]}"
