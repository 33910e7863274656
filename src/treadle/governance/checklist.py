"""The fifteen decisions that the runtime is built on, each with where it lives and what proves it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from treadle.errors import InvalidFile, InvalidRecord, InvalidRequest
from treadle.governance import evidence
from treadle.governance.evidence import State
from treadle.governance.runs import RunKind
from treadle.governance.sources import Checkout, read_toml

FILE: Final = "checklist.toml"


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`lives`: paths, which must exist. `proofs`: commands, each of which must end with exit code 0. `record`: what
    takes too long to be run each time; its last run on record must have passed, on the code as it is."""

    number: int
    title: str
    decided: str
    lives: list[str]
    proofs: list[list[str]]
    record: RunKind | None = None


class Checklist(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    item: list[Item]


class Row(msgspec.Struct, frozen=True):
    """What came of one item. `told`: of each proof what it ran and its last line, up to the one that failed."""

    number: int
    title: str
    proven: bool
    seconds: float
    told: list[str]


def read_checklist(checkout: Checkout) -> list[Item]:
    """In order. Raises InvalidFile."""
    path = checkout.folder / FILE
    items = read_toml(path, Checklist).item
    if [item.number for item in items] != list(range(1, len(items) + 1)):
        raise InvalidFile(f"{path}: items are not numbered 1, 2, ...")
    for item in items:
        if not item.proofs:
            raise InvalidFile(f"{path}: item {item.number} has no proof")
        for place in item.lives:
            if not (checkout.root / place).exists():
                raise InvalidFile(f"{path}: item {item.number} lives in {place}, which does not exist")
    return items


def prove(checkout: Checkout, only: Collection[int], say: Callable[[str], None]) -> list[Row]:
    """Runs the proofs, of the items in `only` if there are any. Raises InvalidFile, InvalidRequest."""
    items = read_checklist(checkout)
    if unknown := set(only) - {item.number for item in items}:
        raise InvalidRequest(f"item {min(unknown)} is not on the checklist; it has {len(items)}")
    return [_prove(checkout, item, say) for item in items if not only or item.number in only]


def _prove(checkout: Checkout, item: Item, say: Callable[[str], None]) -> Row:
    seconds, told = 0.0, list[str]()

    def row(proven: bool) -> Row:
        return Row(item.number, item.title, proven, round(seconds, 2), told)

    if item.record is not None:
        proven, line = _on_record(checkout, item.record)
        told.append(f"{item.record} on record: {line}")
        if not proven:
            return row(False)
    for command in item.proofs:
        words = shlex.join(command)
        say(f"{item.number}. {item.title}: {words}")
        ran = checkout.run(command)
        seconds += ran.seconds
        ended = f" ended with {ran.exit_code}" if ran.exit_code else ""
        told.append(f"`{words}`{ended}: {ran.output}")
        if ran.exit_code:
            return row(False)
    return row(True)


def _on_record(checkout: Checkout, kind: RunKind) -> tuple[bool, str]:
    try:
        found = evidence.of_run(checkout, kind)
    except InvalidRecord as error:
        return False, str(error)
    return found.state is State.PROVEN, found.why if found.state is State.PROVEN else f"{found.state}: {found.why}"
