"""docs/adr/0001 and governance/checklist.toml say the same: titles, decisions, places and proofs."""

import shlex
from pathlib import Path

import pytest

from treadle.governance.checklist import Item, read_checklist
from treadle.governance.runs import KINDS
from treadle.governance.sources import Checkout

ROOT = Path(__file__).parents[2]
ITEMS = read_checklist(Checkout(ROOT))


def sections() -> dict[str, str]:
    """Heading of the third level -> what stands below it."""
    text = (ROOT / "docs" / "adr" / "0001-generic-inference-runtime.md").read_text(encoding="utf-8")
    points = text.partition("\n## The fifteen points\n")[2].partition("\n## ")[0]
    return dict(part.split("\n", 1) for part in points.split("\n### ")[1:])


def test_the_record_has_the_fifteen_items():
    assert list(sections()) == [f"{item.number}. {item.title}" for item in ITEMS]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: str(item.number))
def test_an_item_says_what_was_decided_where_it_lives_and_what_proves_it(item: Item):
    decided, *reasons, facts = sections()[f"{item.number}. {item.title}"].strip().split("\n\n")
    assert decided == f"**Decided:** {item.decided}."
    assert reasons and all(reasons)
    expected = [f"* Lives in {', '.join(f'`{place}`' for place in item.lives)}"]
    if item.record is not None:
        expected.append(f"* Proof on record: `{KINDS[item.record].command}`")
    expected += [f"* Proof: `{shlex.join(command)}`" for command in item.proofs]
    assert facts.splitlines() == expected


def test_proofs_are_about_files_that_exist():
    """A proof that selects no test fails when it is run; one of a file that is gone fails here already."""
    for item in ITEMS:
        for command in item.proofs:
            for word in command:
                if "/" in word:
                    assert (ROOT / word.partition("::")[0]).exists(), f"item {item.number}: {word}"


def test_a_record_that_drifts_is_found():
    drifted = Item(3, ITEMS[2].title, ITEMS[2].decided + ", perhaps", ITEMS[2].lives, ITEMS[2].proofs)
    for item in (drifted, Item(3, ITEMS[2].title, ITEMS[2].decided, ITEMS[2].lives, [["true"]])):
        with pytest.raises(AssertionError):
            test_an_item_says_what_was_decided_where_it_lives_and_what_proves_it(item)
