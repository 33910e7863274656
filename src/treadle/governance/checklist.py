"""The fifteen decisions that the runtime is built on, each with where it lives and the command that proves it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection

import msgspec

from treadle.errors import InvalidFile, InvalidRequest
from treadle.governance.sources import Checkout


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`lives`: paths, which must exist. `proofs`: commands, each of which proves it by exit code 0."""

    number: int
    title: str
    decided: str
    lives: list[str]
    proofs: list[list[str]]


class Checklist(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    item: list[Item]


class Row(msgspec.Struct, frozen=True):
    """What came of one item. `proof`: the last line of each command, or of the one that failed."""

    number: int
    title: str
    proven: bool
    seconds: float
    proof: str


def read_checklist(checkout: Checkout) -> list[Item]:
    """In order. Raises InvalidFile."""
    path = checkout.folder / "checklist.toml"
    try:
        items = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Checklist).item
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidFile(f"{path}: {error}") from None
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
    seconds, lines = 0.0, []
    for command in item.proofs:
        say(f"{item.number}. {item.title}: {' '.join(command)}")
        ran = checkout.run(command)
        seconds += ran.seconds
        if ran.exit_code:
            told = f"`{' '.join(command)}` ended with {ran.exit_code}: {ran.output}"
            return Row(item.number, item.title, False, round(seconds, 2), told)
        lines.append(ran.output)
    return Row(item.number, item.title, True, round(seconds, 2), "; ".join(lines))
