"""llama.cpp loads the GGUF files that treadle writes, and computes the same; where `make bench-peers` installed it."""

import json
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests import tiny

from treadle.inference.engine import quantize_file
from treadle.inference.llm import LLM
from treadle.models.registry import family_of_json
from treadle.parity import compare, oracle
from treadle.parity.matrix import read_matrix
from treadle.parity.run import random_prompts

PEERS = Path(__file__).parents[2] / "bench" / "peers"
PYTHON = PEERS / ".venv-llama_cpp" / "bin" / "python"
MATRIX = read_matrix()
TOLERANCE = 2e-3
"""Relative; llama.cpp looks gelu and silu up in tables of f16."""

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not installed: make bench-peers")


def checkpoint(case, path):
    model = oracle.seeded_model(case.class_name, case.config, MATRIX.defaults.seed)
    oracle.save(model, path)
    return tiny.add_tokenizer(path)


def is_written(case):
    """Whether the case's family has a form in GGUF that treadle writes."""
    model_type = oracle.full_config(case.class_name, case.config)["model_type"]
    return family_of_json(model_type, "config.json").config.GGUF_ARCHITECTURE is not None


def of_llama_cpp(path, ids, folder):
    (folder / "ids.json").write_text(json.dumps(ids))
    command = [PYTHON, PEERS / "llama_cpp_logits.py", path, folder / "ids.json", folder / "logits.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "logits.npy")


WRITTEN = [case for case in MATRIX.cases if case.name == "gqa" or "rope" in case.name]


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: f"{case.family}-{case.name}")
def test_f32_files(case, tmp_path):
    if not is_written(case):
        pytest.skip("no GGUF form that treadle writes")
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
