"""Committed plan files still load, mean the same, and would be written the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.plan.golden import PLANS, write

from treadle.plan.codec import decode_as_written, encode, load
from treadle.plan.dump import text
from treadle.plan.opdoc import page
from treadle.plan.upgrade import upgrade_params
from treadle.plan.verify import verify

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "contract_1"


@pytest.mark.parametrize("name", PLANS)
def test_golden_files_load_and_mean_the_same(name):
    plans = load(GOLDEN / f"{name}.plan")
    verify(plans)
    assert plans == PLANS[name]()
    written = decode_as_written((GOLDEN / f"{name}.plan").read_bytes())
    if upgrade_params(written) is written:  # nothing in it is superseded
        assert encode(plans) == (GOLDEN / f"{name}.plan").read_bytes()
    assert text(plans) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_every_golden_file_is_checked():
    assert {path.name for path in GOLDEN.iterdir()} == {f"{name}.{end}" for name in PLANS for end in ("plan", "txt")}


def test_published_files_are_never_written_again(tmp_path):
    (tmp_path / "zoo.plan").write_bytes(b"old")
    write(tmp_path)
    assert (tmp_path / "zoo.plan").read_bytes() == b"old"
    assert (tmp_path / "decoder.plan").read_bytes() == (GOLDEN / "decoder.plan").read_bytes()


def test_the_page_of_opcodes_is_current():
    assert (ROOT / "docs" / "opcodes.md").read_text(encoding="utf-8") == page()
