"""CODEOWNERS: every layer has owners, they are the roles that sign phases, and no line is about what is gone."""

from pathlib import Path

from treadle.governance import phases
from treadle.governance.sources import Checkout

ROOT = Path(__file__).parents[2]
LAYERS = ("src/treadle", "native", "tests")


def rows() -> dict[str, set[str]]:
    lines = [line.split() for line in (ROOT / "CODEOWNERS").read_text().splitlines()]
    found = [line for line in lines if line and not line[0].startswith("#")]
    assert len({pattern for pattern, *_ in found}) == len(found)
    return {pattern: set(owners) for pattern, *owners in found}


def test_owners_are_the_roles_that_sign():
    roles = {role for phase in phases.read_phases(Checkout(ROOT)).values() for role in phase.roles}
    assert set().union(*rows().values()) == {f"@treadle/{role}" for role in roles}
    assert all(rows().values())


def test_every_line_is_about_something():
    for pattern in rows():
        assert pattern == "*" or (ROOT / pattern.strip("/")).exists(), pattern


def test_every_layer_has_a_line():
    own = rows()
    for parent in LAYERS:
        for folder in (ROOT / parent).iterdir():
            if folder.is_dir() and folder.name not in {"__pycache__", "tools"}:
                assert f"/{parent}/{folder.name}/" in own, folder
