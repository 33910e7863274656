"""llama.cpp loads the GGUF files that treadle writes, and computes the same; where `make bench-peers` installed it."""

import json
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests import tiny

from treadle.inference.llm import LLM
from treadle.inference.tools import quantize_file
from treadle.parity import compare, oracle
from treadle.parity.matrix import read_matrix
from treadle.parity.run import random_prompts

PEERS = Path(__file__).parents[2] / "bench" / "peers"
PYTHON = PEERS / ".venv-llama_cpp" / "bin" / "python"
MATRIX = read_matrix()
TOLERANCE = 3e-3
"""Relative; llama.cpp looks gelu and silu up in tables of f16."""

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not installed: make bench-peers")


def checkpoint(case, path):
    model = oracle.seeded_model(case.class_name, case.config, MATRIX.defaults.seed)
    oracle.save(model, path)
    return tiny.add_tokenizer(path)


def of_llama_cpp(path, ids, folder):
    (folder / "ids.json").write_text(json.dumps(ids))
    command = [PYTHON, PEERS / "llama_cpp_logits.py", path, folder / "ids.json", folder / "logits.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
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
]
"""Cases that GGUF can say; treadle refuses to write the others, by what it cannot say."""


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
