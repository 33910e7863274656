"""tools/check_windows.py: the windows of the tree are in order, and one that is overrun ends in one line."""

import importlib.util
from importlib import resources
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "check_windows.py"
FIRST = '{ opcode = "rmsnorm", version = 1, introduced = "0.1.0"'


@pytest.fixture
def said(capsys, tmp_path):
    spec = importlib.util.spec_from_file_location("check_windows", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = resources.files("treadle.plan").joinpath("versions.toml").read_text(encoding="utf-8")

    def run(*arguments, edit=None):
        if edit is not None:
            assert FIRST in own
            (tmp_path / "versions.toml").write_text(own.replace(FIRST, edit))
            arguments = ("--versions", str(tmp_path / "versions.toml"), *arguments)
        code = module.main(list(arguments))
        return code, capsys.readouterr().out.splitlines()

    return run


def test_the_tree_is_in_order(said):
    code, (line,) = said()
    assert code == 0 and line.endswith("none overdue")


def test_an_end_that_is_overrun(said):
    """The version that the code still reads ends at 0.3.0: nothing else is wrong there, and everything is before."""
    two = FIRST + ', ends = "0.3.0" },\n    { opcode = "rmsnorm", version = 2, introduced = "0.2.0"'
    code, lines = said("--release", "0.3.0", edit=two)
    assert code == 1
    assert "rmsnorm 1 ended at 0.3.0, but the code still reads it" in lines
    code, lines = said("--release", "0.2.0", edit=two)
    assert code == 1 and all(line.startswith("rmsnorm 2 is inside its window, but") for line in lines)


def test_a_release_that_is_none(said):
    assert said("--release", "next") == (1, ["release 'next'; expected three numbers, as in 1.2.3"])
