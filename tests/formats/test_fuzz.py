"""A slice of the fuzz run; `make fuzz` runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.formats import fuzz


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_the_seeds_themselves_are_accepted(target: str, tmp_path: Path) -> None:
    """Otherwise the fuzzer would only ever see the first check fail."""
    seeds, exercise, name = fuzz.TARGETS[target]
    for seed in seeds():
        (tmp_path / name).write_bytes(seed)
        exercise(tmp_path / name)


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_a_slice_of_the_cases(target: str) -> None:
    outcomes = fuzz.run(target, range(600))
    assert sum(outcomes.values()) == 600
    assert outcomes["InvalidFile"] > 100
    assert outcomes["opened"] > 10
