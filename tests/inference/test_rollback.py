"""Ways back that users have: another backend, weights packed by another version, a family that was taken out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.cli.command import treadle_json
from tests.inference.weight_files import settle

from treadle import LLM, SamplingParams
from treadle.errors import UnsupportedModel
from treadle.inference.backends.cpu import CpuBackend
from treadle.models import families
from treadle.models.registry import HF_FAMILIES

IDS = [[5, 80, 13, 4, 211, 90, 7], [17, 3], np.random.default_rng(3).integers(3, 300, 40).tolist()]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=24, ignore_eos=True)


def tokens(path, backend: str, params: SamplingParams) -> list[list[int]]:
    options = {"backend": backend, "numerics": "exact", "allow_per_slot": True, "max_model_len": 128}
    with LLM(path, threads=2 if backend == "cpu" else None, **options) as llm:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in IDS], params)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", ["llama-bias", "mistral-window"])
def test_the_reference_backend_gives_the_tokens_of_cpu(name, params, tiny_checkpoint):
    found = tokens(tiny_checkpoint(name), "cpu", params)
    assert found == tokens(tiny_checkpoint(name), "reference", params)
    assert len({token for row in found for token in row}) > 10


def test_quantised_weights_switch_backends_too(tiny_gguf):
    path = tiny_gguf("llama", "Q4_1")
    assert tokens(path, "cpu", GREEDY) == tokens(path, "reference", GREEDY)


def test_the_flag_switches_the_backend(tiny_checkpoint):
    asked = ("run", tiny_checkpoint("llama"), "the inner theory on 12", "--raw", "--numerics", "exact")
    asked += ("--temperature", 0, "--max-tokens", 12, "--max-num-seqs", 1)
    cpu, reference = (treadle_json(*asked, "--backend", backend) for backend in ("cpu", "reference"))
    assert (cpu["backend"], reference["backend"]) == ("cpu", "reference")
    assert cpu["token_ids"] == reference["token_ids"]
    assert len(cpu["token_ids"]) == 12


@contextmanager
def version_before() -> Iterator[None]:
    """What another version of the package does: it packs otherwise, and its signature says so."""
    pack, packing = CpuBackend.pack, CpuBackend.packing

    def packed_otherwise(backend, binding, view, out):
        pack(backend, binding, view, out)
        out ^= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuBackend, "pack", packed_otherwise)
        patch.setattr(CpuBackend, "packing", lambda backend, dtypes: packing(backend, dtypes) + " before")
        yield


def logits(path, **options) -> tuple[bytes, bool]:
    """Bits of the logits, and whether the weights were mapped from the cache."""
    settle()
    with LLM(path, threads=1, max_model_len=64, **options) as llm:
        return llm.logits(IDS[0]).tobytes(), llm.info.weights_mapped


def test_weights_packed_by_the_version_before_are_left_alone_and_packed_anew(tiny_gguf, tmp_path, monkeypatch):
    path = tiny_gguf("llama", "Q4_1")
    expected, _ = logits(path)
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", "1GB")
    with version_before():
        before, mapped = logits(path)
        assert not mapped and before != expected
        assert logits(path) == (before, True)
    assert logits(path) == (expected, False)
    assert logits(path) == (expected, True)
    with version_before():  # and back again: its own file is still there
        assert logits(path) == (before, True)
    assert len(list((tmp_path / "weights").glob("*.weights"))) == 2


def test_a_family_taken_out_of_the_registry_is_refused_and_runs_from_a_file(tiny_checkpoint, monkeypatch):
    path, file = tiny_checkpoint("llama-bias"), Path(families.__file__).with_name("llama.py")
    expected, _ = logits(path)
    monkeypatch.delitem(HF_FAMILIES, "llama")
    with pytest.raises(UnsupportedModel, match="model_type: 'llama' is not supported"):
        logits(path)
    assert logits(path, family_file=str(file))[0] == expected
