"""Models without a file: their sizes, types by tensor, refusals, and the same logits as the file written of them."""

import math
from collections import Counter

import gguf
import numpy as np
import pytest

from treadle.errors import UnsupportedModel
from treadle.formats.gguf import GGUFFile
from treadle.inference.engine import describe
from treadle.inference.llm import LLM
from treadle.inference.options import EngineOptions
from treadle.models.export_synthetic import write_synthetic
from treadle.models.synthetic import synthetic_tensors

PROMPT = [5, 300, 17, 8, 211]


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [("smollm2-135m", 134_515_008), ("1b", 1_235_814_400), ("3b", 3_212_749_824), ("8b", 8_030_261_248)],
)
def test_a_shape_has_the_parameters_of_its_model(shape, parameters):
    """The counts that the models' cards give (SmolLM2 135M, Llama 3.2 1B and 3B, Llama 3.1 8B)."""
    tensors = synthetic_tensors(f"synthetic:llama:{shape}:q8_0").tensors.values()
    assert sum(math.prod(info.shape) for info in tensors) == parameters


@pytest.mark.parametrize(
    ("model", "parameters"),
    [("lfm2:350m", 354_483_968), ("lfm2:1.2b", 1_170_340_608), ("mamba2:130m", 128_989_632)],
)
def test_a_recurrent_shape_has_the_parameters_of_its_model(model, parameters):
    """As transformers counts them, of configs with the published sizes (LFM2 350M and 1.2B, Mamba-2 130M)."""
    tensors = synthetic_tensors(f"synthetic:{model}:q8_0").tensors.values()
    assert sum(math.prod(info.shape) for info in tensors) == parameters


def test_a_shape_with_experts_has_the_parameters_of_its_model():
    """Qwen3-30B-A3B, as its card gives them (30.5B, 3.3B of them active)."""
    tensors = synthetic_tensors("synthetic:qwen3_moe:30b-a3b:q4_k").tensors.values()
    assert sum(math.prod(info.shape) for info in tensors) == 30_532_122_624
    assert all(info.dtype == "f32" for info in tensors if "ffn_gate_inp" in info.name)
    active = sum(math.prod(info.shape) * (8 / 128 if len(info.shape) == 3 else 1) for info in tensors)
    assert 3.3e9 < active < 3.4e9


def test_one_type_is_for_every_matrix_and_norms_are_f32():
    for info in synthetic_tensors("synthetic:llama:1b:q6_k").tensors.values():
        assert info.dtype == ("q6_k" if len(info.shape) == 2 else "f32")


def test_q4_k_m_mixes_types_as_llama_cpp_does():
    """Gemma 3 270M's rows of 640 are no whole K block: q5_0 and q8_0 stand in. More bits: the first and last eighth of
    18 layers, and every third between."""
    tensors = synthetic_tensors("synthetic:llama:gemma3-270m:q4_k_m").tensors
    finer = {0, 1, 4, 7, 10, 13, 15, 16, 17}
    assert tensors["token_embd.weight"].dtype == "q8_0"
    for layer in range(18):
        block = f"blk.{layer}"
        assert tensors[f"{block}.attn_v.weight"].dtype == ("q8_0" if layer in finer else "q5_0")
        assert tensors[f"{block}.ffn_down.weight"].dtype == ("q6_k" if layer in finer else "q4_k")
        assert tensors[f"{block}.attn_output.weight"].dtype == "q4_k"
        assert tensors[f"{block}.ffn_up.weight"].dtype == "q5_0"


def test_q4_k_m_of_gemmas_sizes_has_the_types_of_the_real_file(gemma3):
    """Every matrix of Gemma 3 270M Q4_K_M as released, by shape and type; a llama has fewer norms."""
    made, file = synthetic_tensors("synthetic:llama:gemma3-270m:q4_k_m").tensors, GGUFFile.open(gemma3)
    try:
        real = {name: (info.dtype, info.shape) for name, info in file.tensors.items() if len(info.shape) == 2}
    finally:
        file.close()
    assert {name: (info.dtype, info.shape) for name, info in made.items() if len(info.shape) == 2} == real
    assert Counter(dtype for dtype, _ in real.values()) == {"q5_0": 81, "q4_k": 27, "q8_0": 10, "q6_k": 9}


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("synthetic:llama:2b:q8_0", "shape '2b' is not known; known: tiny, smollm2-135m"),
        ("synthetic:qwen:1b:q8_0", "family 'qwen' is not known; known: llama"),
        ("synthetic:llama:1b:q9_9", "type 'q9_9' is not known; known: f32"),
        ("synthetic:llama:1b", "expected FAMILY:SHAPE:TYPE"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(model, wanted):
    with pytest.raises(UnsupportedModel, match=wanted):
        describe(model, EngineOptions())


def test_a_model_can_be_described_without_its_weights():
    description = describe("synthetic:llama:8b:q8_0", EngineOptions())
    assert description.plans.facts.layers == 32
    assert 8.0e9 < description.memory_quote.weights_bytes < 9.5e9
    assert description.info.model == "synthetic:llama:8b:q8_0"


@pytest.mark.parametrize(
    "tiny", ["llama:tiny:q4_1", "llama:tiny:bf16", "qwen3_moe:tiny:q4_k", "mamba2:tiny:q8_0", "lfm2:tiny:q4_k"]
)
def test_the_file_written_of_it_is_the_same_model(tiny, tmp_path):
    model = f"synthetic:{tiny}"
    path = write_synthetic(model, tmp_path / "tiny.gguf")
    with LLM(model, threads=1) as made, LLM(path, threads=1) as read:
        ours, theirs = made.logits(PROMPT), read.logits(PROMPT)
        assert made.info.plan_hash == read.info.plan_hash
        assert read.encode("no")  # the tokenizer of bytes
    assert np.isfinite(ours).all()
    assert ours.std() > 0.1
    assert np.array_equal(ours, theirs)


def test_another_reader_finds_what_was_written(tmp_path):
    path = write_synthetic("synthetic:llama:tiny:q4_k_m", tmp_path / "tiny.gguf")
    reader = gguf.GGUFReader(path)
    wanted = synthetic_tensors("synthetic:llama:tiny:q4_k_m")
    assert {t.name: t.tensor_type.name.lower() for t in reader.tensors} == {
        name: info.dtype for name, info in wanted.tensors.items()
    }
    for tensor in reader.tensors:
        assert np.array_equal(tensor.data.reshape(-1).view(np.uint8), wanted.raw(tensor.name))
    file = GGUFFile.open(path)
    try:
        assert file.metadata["general.file_type"] == 15
        assert len(file.metadata["tokenizer.ggml.tokens"]) == 512
    finally:
        file.close()
