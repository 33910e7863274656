"""Models that load from packed weights on disk: the same bits as without, whatever was done to the files.

Damage is done to real files of a small model; what a load then computes is compared with a load without a cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.inference.weight_files import flip, left_in, settle

from treadle import LLM
from treadle.errors import InvalidRequest
from treadle.inference.weight_cache import WeightCache

PROMPT = [5, 80, 13, 4, 211, 90, 7]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", "1GB")
    return tmp_path / "home"


def logits(path, **options):
    settle()
    with LLM(path, **{"threads": 2, "max_model_len": 64, **options}) as llm:
        return llm.logits(PROMPT), llm.info.weights_mapped


@pytest.mark.parametrize("numerics", ["fast", "bf16", "exact"])
@pytest.mark.parametrize("dtype", ["Q4_1", "Q8_0", "F16", "F32"])
def test_mapped_weights_give_the_same_bits(dtype, numerics, tiny_gguf, home):
    path = tiny_gguf("llama-bias", dtype)
    expected, _ = logits(path, numerics=numerics, weight_cache=False)
    assert not (home / "weights").exists()
    for mapped, threads in ((False, 2), (True, 2), (True, 1), (True, 3)):
        found, was_mapped = logits(path, numerics=numerics, threads=threads)
        assert was_mapped is mapped
        np.testing.assert_array_equal(found, expected)


def test_one_file_serves_all_that_packs_alike(tiny_gguf, home):
    path = tiny_gguf("llama", "Q8_0")
    assert logits(path)[1] is False
    for options in ({"numerics": "exact"}, {"kv_dtype": "f32"}, {"max_model_len": 128}, {"max_num_seqs": 2}):
        assert logits(path, **options)[1] is True
    assert logits(path, weight_cache=False)[1] is False


def test_safetensors(tiny_checkpoint, home):
    path = tiny_checkpoint("llama-tied")
    (first, was), (second, then) = logits(path), logits(path)
    assert (was, then) == (False, True)
    np.testing.assert_array_equal(first, second)


def test_mapped_weights_are_quoted_and_measured_alike(tiny_gguf, home):
    path = tiny_gguf("llama", "Q4_1")
    settle()
    for mapped in (False, True):
        with LLM(path) as llm:
            assert llm.info.weights_mapped is mapped
            assert llm.memory_quote.total_bytes == llm.memory_measured_bytes


def test_the_reference_backend_keeps_nothing(tiny_gguf, home):
    with LLM(tiny_gguf("llama", "Q8_0"), backend="reference", allow_per_slot=True):
        pass
    assert not (home / "weights").exists()


def test_limit_zero_switches_it_off(tiny_gguf, home, monkeypatch):
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", "0")
    assert logits(tiny_gguf("llama", "Q8_0"))[1] is False
    assert not (home / "weights").exists()
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", "lots")
    with pytest.raises(InvalidRequest, match="TREADLE_CACHE_LIMIT"):
        logits(tiny_gguf("llama", "Q8_0"))


def test_a_damaged_file_changes_no_bit(tiny_gguf, home, caplog):
    path = tiny_gguf("llama", "Q4_1")
    expected, _ = logits(path)
    (kept,) = (home / "weights").glob("*.weights")
    flip(kept, kept.stat().st_size // 2)
    found, mapped = logits(path)
    assert mapped is False and "damaged weights; packing the weights again" in caplog.text
    np.testing.assert_array_equal(found, expected)
    assert logits(path)[1] is True


def test_mapped_weights_outlive_their_file(tiny_gguf, home):
    path = tiny_gguf("llama", "Q4_1")
    expected, _ = logits(path)
    with LLM(path, threads=2, max_model_len=64) as llm:
        assert llm.info.weights_mapped
        shutil.rmtree(home / "weights")
        np.testing.assert_array_equal(llm.logits(PROMPT), expected)


def test_a_forked_child_maps_the_same_file(tiny_gguf, home):
    """The child lets go of what it inherited and loads for itself; the parent's map stays."""
    path = tiny_gguf("llama", "Q8_0")
    logits(path)
    with LLM(path, threads=1, max_model_len=64) as llm:
        assert llm.info.weights_mapped
        expected = llm.logits(PROMPT)
        child = os.fork()
        if child == 0:
            try:
                llm.close()
                found, mapped = logits(path, threads=1)
                os._exit(0 if mapped and np.array_equal(found, expected) else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        np.testing.assert_array_equal(llm.logits(PROMPT), expected)


RACER = """
import sys
from treadle import LLM
for _ in range(3):
    with LLM(sys.argv[1], threads=1, max_model_len=64) as llm:
        print(llm.logits([5, 80, 13]).tobytes().hex()[-64:], llm.info.weights_mapped)
"""


def test_processes_that_start_together(tiny_gguf, home):
    """All give the same bits without a notice, and one whole file is left."""
    path = str(tiny_gguf("llama", "Q4_1"))
    settle()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, path], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    outputs = [racer.communicate(timeout=120) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], outputs
    assert {err for _, err in outputs} == {""}
    lines = [out.splitlines() for out, _ in outputs]
    assert len({line.split()[0] for racer in lines for line in racer}) == 1
    assert all(racer[-1].endswith("True") for racer in lines)
    (kept,) = WeightCache(home / "weights").entries()
    assert not kept.problem
    assert left_in(home / "weights") == [kept.file.name, "sources.json"]


def test_quantised_on_load(tiny_checkpoint, home):
    """The cache tells a quantised model from itself as stored, and from another type of the same size."""
    path = tiny_checkpoint("llama")
    found = {}
    for quantize in (None, "q8_0", "q4_1", "q4_0"):
        expected, _ = logits(path, quantize=quantize, weight_cache=False)
        assert logits(path, quantize=quantize)[1] is False
        found[quantize], mapped = logits(path, quantize=quantize)
        assert mapped
        np.testing.assert_array_equal(found[quantize], expected)
    assert len({value.tobytes() for value in found.values()}) == 4
