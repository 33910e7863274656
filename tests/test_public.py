"""The public names: all there, lazy, typed, and the error tree as its docstring draws it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import treadle
from treadle import errors


def test_every_public_name_is_there():
    for name in treadle.__all__:
        assert getattr(treadle, name) is not None
    assert set(treadle.__all__) <= set(dir(treadle))
    with pytest.raises(AttributeError, match="no attribute 'Lllm'"):
        _ = treadle.Lllm


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert treadle.__version__ == project["version"]


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, treadle; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "treadle.errors" in loaded
    assert not {"numpy", "msgspec", "tokenizers", "jinja2", "treadle._native"} & set(loaded)


def test_the_error_tree_is_as_drawn():
    """Indentation in the docstring is inheritance."""
    parents: list[tuple[int, type]] = []
    drawn = {}
    for line in (errors.__doc__ or "").split("``x`` marks")[0].splitlines()[2:]:
        words = line.split()
        if not words:
            continue
        name = words[1] if words[0] in ("x", "+") else words[0]
        depth = len(line) - len(line.lstrip())
        kind = getattr(errors, name)
        parents = [(d, k) for d, k in parents if d < depth]
        drawn[name] = parents[-1][1] if parents else Exception
        parents.append((depth, kind))
    assert set(drawn) == set(errors.__all__)
    for name, parent in drawn.items():
        assert getattr(errors, name).__bases__ == (parent,), name
