"""Transition windows: the real table is in order, and each way to break it is found."""

from __future__ import annotations

from pathlib import Path

import pytest

import treadle
from treadle.errors import InvalidPlan
from treadle.plan.versions import accepted, held, parse, parse_release, problems, windows

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("contract_*"))


def test_every_end_is_carried_out_and_every_version_has_golden_files():
    assert list(problems(treadle.__version__, windows(), accepted(), held(*GOLDEN))) == []


def test_the_golden_files_hold_what_they_are_named_for():
    """One folder a contract version, and nothing in them that is not read."""
    for folder in GOLDEN:
        version = int(folder.name.removeprefix("contract_"))
        assert {key for key in held(folder) if key[0] == "contract"} == {("contract", version)}
    assert held(*GOLDEN) == accepted()


TWO = """
contract = [
    { version = 1, introduced = "0.1.0", ends = "0.4.0" },
    { version = 2, introduced = "0.3.0" },
]
params = [{ opcode = "rmsnorm", version = 1, introduced = "0.1.0" }]
"""
READS = {("contract", 1), ("contract", 2), ("rmsnorm", 1)}


def found(text=TWO, release="0.3.5", reads=READS, golden=frozenset(READS)) -> list[str]:
    return list(problems(release, parse(text), reads, golden))


def test_a_sound_window():
    assert found() == []
    left = READS - {("contract", 1)}
    assert found(release="0.4.0", reads=left, golden=left) == []


def test_an_end_that_was_not_carried_out():
    assert found(release="0.4.0") == [
        "contract 1 ended at 0.4.0, but the code still reads it",
        "contract 1 ended at 0.4.0, but its golden files are still there",
    ]
    assert len(found(release="1.0.0")) == 2


def test_support_dropped_too_early():
    assert found(reads=READS - {("contract", 1)}) == ["contract 1 is inside its window, but the code does not read it"]


def test_a_version_without_a_golden_file():
    assert found(golden=READS - {("rmsnorm", 1)}) == ["rmsnorm 1 is inside its window, but no golden file holds it"]


def test_windows_that_are_too_long_short_or_open():
    assert "one minor release after 0.3.0 is the limit" in found(TWO.replace("0.4.0", "0.4.1"))[0]
    assert "one minor release after 0.3.0 is the limit" in found(TWO.replace("0.4.0", "1.0.0"))[0]
    assert "before its successor can be adopted" in found(TWO.replace("0.4.0", "0.3.0"), "0.2.9", READS)[0]
    assert found(TWO.replace(', ends = "0.4.0"', "")) == ["contract 1 is superseded by 2 and has no end"]


def test_versions_without_an_entry_or_a_successor():
    assert found(reads=READS | {("rmsnorm", 2)}) == ["rmsnorm 2 is not in versions.toml"]
    assert found(TWO.replace("version = 2", "version = 3"))[0] == "contract 2 is not in versions.toml"
    ends = TWO.replace('introduced = "0.1.0" }]', 'introduced = "0.1.0", ends = "0.9.0" }]')
    assert found(ends) == ["rmsnorm 1 ends, but nothing supersedes it"]


def test_a_version_of_the_future():
    assert found(release="0.2.0") == ["contract 2 was introduced at 0.3.0, which is not released yet"]


@pytest.mark.parametrize("text", ["1.2", "1.2.x", "1.2.3.4", "", "v1.2.3"])
def test_releases_are_three_numbers(text):
    with pytest.raises(InvalidPlan, match="three numbers"):
        parse_release(text)
