"""tools/check_vocabulary.py finds a planted word in kernels of either language, and none in the tree."""

import importlib.util
from pathlib import Path

import pytest

from treadle.models.registry import GGUF_FAMILIES, HF_FAMILIES

SCRIPT = Path(__file__).parents[2] / "tools" / "check_vocabulary.py"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_vocabulary", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def found(check, tmp_path, capsys):
    def breaches(path, text):
        source = tmp_path / path
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(text)
        code = check.main(tmp_path)
        source.unlink()
        lines = capsys.readouterr().out.splitlines()
        assert code == (0 if lines == ["vocabulary: 1 files of kernels, no breach"] else 1)
        return [line for line in lines if "no breach" not in line]

    return breaches


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("native/compute/x.cpp", "int rows;\nint tokens = 1;\n", "x.cpp:2: kernels know rows and strides, not 'token'"),
        ("native/compute/isa/x.hpp", "// of the prompt\n", "not 'prompt'"),
        ("native/compute/x.cpp", "void Qwen2Norm();\n", "not 'qwen2'"),
        ("native/compute/x.cpp", "enum { kGemma3, };\n", "not 'gemma3'"),
        ("native/compute/x.cpp", "// as in GPT-2\n", "not 'gpt'"),
        ("native/compute/llama.cpp", "\n", "llama.cpp:0: kernels know rows and strides, not 'llama'"),
        ("src/treadle/compute/x.py", "vocab_size = 3\n", "not 'vocab'"),
        ("src/treadle/compute/x.py", "def bert_norm(x): ...\n", "not 'bert'"),
        ("src/treadle/compute/x.py", "if kind == 'starcoder2': ...\n", "not 'starcoder2'"),
        ("src/treadle/compute/x.py", "x = 1  # Mistral\n", "not 'mistral'"),
        ("src/treadle/compute/x.py", '"""Of tokens."""\n', "not 'token'"),
    ],
)
def test_a_planted_word_is_found(found, path, text, said):
    (line,) = found(path, text)
    assert line.endswith(said)


@pytest.mark.parametrize("name", sorted({*HF_FAMILIES, *HF_FAMILIES.values(), *GGUF_FAMILIES}))
def test_every_family_of_the_registry_is_known(check, found, name):
    """But an op may be called what a family is called (mamba_mixer)."""
    known = name in check.family_names()
    assert known or name.rstrip("0123456789") in {"mamba"}
    for written in (name, name.title(), name.replace("_", "-")):
        assert bool(found("native/compute/x.cpp", f"// of {written}\n")) is known


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("native/compute/x.cpp", "// Philox, graphite, Hilbert, alphabet\nint rows;\n"),
        ("src/treadle/compute/x.py", '"""tanh (Gemma 2 report, arXiv:2408.00118)."""\nrows = 1\n'),
        ("src/treadle/compute/mamba.py", "def mamba_mixer(x): ...\n"),
    ],
)
def test_what_is_allowed_passes(found, path, text):
    assert found(path, text) == []


def test_the_tree_has_no_breach(check, capsys):
    assert check.main() == 0
    assert "no breach" in capsys.readouterr().out
