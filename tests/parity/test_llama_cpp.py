"""llama.cpp loads the GGUF files that treadle writes, and computes the same; where `make bench-peers` installed it."""

import json
import re
import subprocess
from contextlib import nullcontext
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests import tiny

from treadle.errors import UnsupportedModel
from treadle.formats.tensors import TensorInfo
from treadle.inference.llm import LLM
from treadle.inference.tools import quantize_file
from treadle.models import export_gguf
from treadle.models.llama_cpp import check_loadable
from treadle.parity import compare, oracle
from treadle.parity.matrix import read_matrix
from treadle.parity.run import random_prompts

PEERS = Path(__file__).parents[2] / "bench" / "peers"
PYTHON = PEERS / ".venv-llama_cpp" / "bin" / "python"
MATRIX = read_matrix()
TOLERANCE = 3e-3
"""Relative; llama.cpp looks gelu and silu up in tables of f16."""

needs_llama_cpp = pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not installed: make bench-peers")


def checkpoint(case, path):
    model = oracle.seeded_model(case.class_name, case.config, MATRIX.defaults.seed)
    oracle.save(model, path)
    return tiny.add_tokenizer(path)


def run_llama_cpp(path, ids, folder):
    (folder / "ids.json").write_text(json.dumps(ids))
    command = [PYTHON, PEERS / "llama_cpp_logits.py", path, folder / "ids.json", folder / "logits.npy"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def of_llama_cpp(path, ids, folder):
    done = run_llama_cpp(path, ids, folder)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "logits.npy")


WRITTEN = [
    "llama/gqa",
    "llama/biases",
    "llama/rope-linear",
    "llama/rope-llama3",
    "llama/rope-yarn",
    "qwen2/gqa",
    "qwen2/rope-yarn",
    "qwen3/norms",
    "gemma/gqa",
    "phi/half-rotated",
    "granite/biases",
    "olmo/no-gains",
    "olmo2/post-norms",
    "stablelm/serial",
    "stablelm/parallel",
    "starcoder2/biases",
    "mixtral/two-of-eight",
    "qwen3_moe/normalised",
    "granitemoe/experts",
    "olmo/tied",
    "smollm3/every-fourth",
    "seed_oss/biases",
    "arcee/squared-relu",
    "ernie4_5/pairs",
    "exaone4/full",
]
"""Cases that GGUF can say; treadle refuses to write the others, by what it cannot say."""
REFUSED = {
    "qwen3/biases": "tensor blk.0.attn_output.bias: llama.cpp's architecture 'qwen3' has no such bias",
    "qwen3_moe/not-normalised": "tensor blk.0.attn_output.bias: llama.cpp's architecture 'qwen3moe' has no such bias",
    "olmo/clip": "tensor blk.0.attn_output.bias: llama.cpp's architecture 'olmo' has no such bias",
    "olmo2/biases": "tensor blk.0.attn_output.bias: llama.cpp's architecture 'olmo2' has no such bias",
    "olmo2/tied": "tensor output.weight: llama.cpp's architecture 'olmo2' wants a head beside the embedding table",
    "olmoe/normalised": "tensor blk.0.attn_output.bias: llama.cpp's architecture 'olmoe' has no such bias",
    "olmoe/experts": "tensor blk.0.attn_k_norm.weight: llama.cpp's architecture 'olmoe' wants 64 values",
    "seed_oss/other-biases": "bias: llama.cpp's architecture 'seed_oss' has no such bias",
    "arcee/biases": "tensor blk.0.attn_output.bias: llama.cpp's architecture 'arcee' has no such bias",
    "ernie4_5/biases": "tensor blk.0.attn_output.bias: llama.cpp's architecture 'ernie4_5' has no such bias",
    "gemma/untied": "tensor blk.0.attn_output.bias: llama.cpp's architecture 'gemma' has no such bias",
}
"""Cases that GGUF could say, but llama.cpp does not load."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_not_load_is_not_written(name, tmp_path):
    (case,) = MATRIX.select(*name.split("/"))
    folder = checkpoint(case, tmp_path / "model")
    with pytest.raises(UnsupportedModel, match=re.escape(REFUSED[name])):
        quantize_file(folder, tmp_path / "model.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("architecture", "names", "why"),
    [
        ("gemma", ("output.weight",), "tensor output.weight: .* has no head beside the embedding table"),
        ("phi2", (), "tensor output.weight: .* wants a head beside the embedding table"),
        ("starcoder2", ("blk.1.ffn_up.weight",), "tensor blk.1.ffn_up.bias: .* wants this bias"),
        ("llama", ("blk.1.ffn_up.weight", "blk.1.ffn_up.bias", "blk.1.attn_output.bias"), None),
        ("starcoder2", ("blk.1.ffn_up.weight", "blk.1.ffn_up.bias", "output.weight"), None),
    ],
)
def test_what_its_architectures_take_and_want(architecture, names, why):
    infos = {name: TensorInfo(name, "f32", (8, 8), 0, 256) for name in ("token_embd.weight", *names)}
    with nullcontext() if why is None else pytest.raises(UnsupportedModel, match=why):
        check_loadable(architecture, infos)


@needs_llama_cpp
@pytest.mark.parametrize("name", REFUSED)
def test_llama_cpp_would_not_load_it(name, tmp_path, monkeypatch):
    monkeypatch.setattr(export_gguf, "check_loadable", lambda architecture, tensors: None)
    (case,) = MATRIX.select(*name.split("/"))
    quantize_file(checkpoint(case, tmp_path / "model"), tmp_path / "model.gguf", "f32")
    done = run_llama_cpp(tmp_path / "model.gguf", [1, 2, 3], tmp_path)
    assert done.returncode != 0
    assert "error loading model" in done.stderr


@needs_llama_cpp
@pytest.mark.parametrize("name", WRITTEN)
def test_f32_files(name, tmp_path):
    (case,) = MATRIX.select(*name.split("/"))
    (ids,) = random_prompts(msgspec.structs.replace(MATRIX.defaults, lengths=(100,)), case.config["vocab_size"])
    folder = checkpoint(case, tmp_path / "model")
    quantize_file(folder, tmp_path / "model.gguf", "f32")
    found = []
    for path in (folder, tmp_path / "model.gguf"):
        with LLM(path, numerics="exact", threads=1, max_num_logits=512) as llm:
            found.append((llm.info.plan_hash, llm.logits(ids)))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert compare.relative_error([found[0][1]], [of_llama_cpp(tmp_path / "model.gguf", ids, tmp_path)]) < TOLERANCE
