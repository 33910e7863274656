"""tools/check_native_includes.py finds each kind of breach, and none in the tree."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "check_native_includes.py"


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location("check_native_includes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def breaches(check, monkeypatch, root, path, text):
    for name in ("compute/a.hpp", "contract/b.hpp", "inference/c.hpp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("#pragma once\n")
    source = root / path
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text)
    monkeypatch.setattr(check, "NATIVE", root)
    return check.breaches_in(source)


@pytest.mark.parametrize(
    ("path", "text", "word"),
    [
        ("compute/x.cpp", '#include "inference/c.hpp"\n', "must not include"),
        ("compute/x.cpp", '#include "contract/b.hpp"\n', "must not include"),
        ("compute/x.cpp", '#include "nowhere.hpp"\n', "not in native/"),
        ("compute/x.cpp", "#include <nanobind/nanobind.h>\n", "must not know Python"),
        ("contract/x.hpp", '#include "compute/a.hpp"\n', "must not include"),
        ("elsewhere/x.cpp", "\n", "not a known layer"),
    ],
)
def test_a_breach_is_found(check, monkeypatch, tmp_path, path, text, word):
    found = breaches(check, monkeypatch, tmp_path, path, text)
    assert len(found) == 1
    assert word in found[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("compute/isa/x.cpp", '#include "compute/a.hpp"\n#include <vector>\n'),
        ("compute/x.cpp", '#include "a.hpp"\n'),
        ("inference/x.cpp", '#include "compute/a.hpp"\n#include "contract/b.hpp"\n'),
    ],
)
def test_what_is_allowed_passes(check, monkeypatch, tmp_path, path, text):
    assert breaches(check, monkeypatch, tmp_path, path, text) == []


def test_the_tree_has_no_breach(check, capsys):
    assert check.main() == 0
    assert "no breach" in capsys.readouterr().out
