"""No step reads or writes outside its arenas: run in a process of its own, where that is a crash."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = [("llama", "Q4_1"), ("llama-bias", "Q8_0"), ("llama-mha", "F16"), ("llama", "F32")]


def run(path, numerics, threads):
    command = [sys.executable, "-m", "tests.parity.guarded_run", str(path), numerics, str(threads)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("numerics", "threads"), [("fast", 1), ("fast", 3), ("exact", 2)])
@pytest.mark.parametrize(("name", "dtype"), MODELS)
def test_tiny_models(name, dtype, numerics, threads, tiny_gguf):
    done = run(tiny_gguf(name, dtype), numerics, threads)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("numerics", "threads"), [("fast", 2), ("exact", 1)])
def test_smollm2(numerics, threads, smollm2):
    done = run(smollm2, numerics, threads)
    assert done.returncode == 0, done.stderr
