"""Quantised on load, and written as GGUF: the same bits either way, the types that were promised, nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from tests import wide

from treadle import LLM
from treadle.cli.options import QUANTISED
from treadle.errors import InvalidFile, InvalidRequest, InvalidWeights, UnsupportedModel
from treadle.formats.gguf import GGUFFile
from treadle.formats.tokenizer import Tokenizer
from treadle.inference.engine import describe
from treadle.inference.options import EngineOptions
from treadle.inference.tools import quantize_file
from treadle.models.compile import MATRIX_DTYPES
from treadle.models.quantisation import QUANTISED_TYPES, TABLE_TYPE
from treadle.plan.ir import DType

LOADABLE = [name for name in QUANTISED_TYPES if DType[name.upper()] in MATRIX_DTYPES]
TINY = [
    "llama",
    "llama-tied",
    "llama-bias",
    "llama-mha",
    "llama-linear",
    "llama-llama3",
    "llama-yarn",
    "mistral-window",
]
IDS = [1, 9, 40, 77, 23, 5, 61, 14, 30, 2, 99, 18]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide.save(tmp_path_factory.mktemp("wide") / "wide")


@pytest.fixture(scope="module")
def stored(model: Path) -> dict[str, np.ndarray]:
    """What the folder holds: bf16 rounded to f32."""
    return {name: x.astype(ml_dtypes.bfloat16).astype(np.float32) for name, x in wide.tensors().items()}


def logits(model: Path, **options: object) -> np.ndarray:
    with LLM(model, threads=2, **options) as llm:
        return llm.logits(IDS)


def types_of(path: Path) -> dict[str, str]:
    with GGUFFile.open(path) as file:
        return {name: info.dtype for name, info in file.tensors.items()}


def values_of(path: Path, name: str) -> np.ndarray:
    """A tensor's values, read and decoded by gguf-py."""
    (found,) = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name]
    return gguf.quants.dequantize(found.data, found.tensor_type)


def relative_rms(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def test_the_command_line_knows_every_type() -> None:
    assert QUANTISED == QUANTISED_TYPES


@pytest.mark.parametrize("dtype", LOADABLE)
def test_on_load_and_by_file_are_the_same_bits(model: Path, tmp_path: Path, dtype: str) -> None:
    report = quantize_file(model, tmp_path / "q.gguf", dtype)
    assert report.file_bytes == (tmp_path / "q.gguf").stat().st_size
    assert report.tensor_types == {
        name: list(types_of(tmp_path / "q.gguf").values()).count(name) for name in report.tensor_types
    }
    for numerics in ("fast", "exact"):
        by_file = logits(tmp_path / "q.gguf", numerics=numerics)
        assert np.array_equal(logits(model, quantize=dtype, numerics=numerics), by_file)


@pytest.mark.parametrize("name", TINY)
def test_every_variant_survives_the_way_through_gguf(tiny_checkpoint, tmp_path: Path, name: str) -> None:
    """Biases, tied tables, windows and rope scalings; rows of 64 and 96 columns."""
    for dtype in ("f32", "q8_0", "q4_0"):
        quantize_file(tiny_checkpoint(name), tmp_path / f"{dtype}.gguf", dtype)
        on_load = {} if dtype == "f32" else {"quantize": dtype}
        by_file = logits(tmp_path / f"{dtype}.gguf", numerics="exact")
        loaded = logits(tiny_checkpoint(name), numerics="exact", **on_load)
        assert np.array_equal(loaded, by_file)
    quantize_file(tmp_path / "f32.gguf", tmp_path / "again.gguf", "q8_0")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "q8_0.gguf").read_bytes()


@pytest.mark.parametrize("dtype", QUANTISED_TYPES)
def test_others_read_what_is_written(model: Path, stored: dict[str, np.ndarray], tmp_path: Path, dtype: str) -> None:
    """Types and values through gguf-py; q and k rows are where llama.cpp expects them."""
    path = tmp_path / "q.gguf"
    quantize_file(model, path, dtype)
    types = types_of(path)
    table = dtype if dtype in ("q8_0", "q6_k") else TABLE_TYPE.name.lower()
    assert {types["token_embd.weight"], types["output.weight"]} == {table}
    assert {kind for name, kind in types.items() if name.startswith("blk.") and "norm" not in name} == {dtype}
    assert {kind for name, kind in types.items() if "norm" in name} == {"f32"}
    np.testing.assert_array_equal(values_of(path, "output_norm.weight"), stored["model.norm.weight"])
    coarse = {"q2_k": 0.28, "q3_k": 0.16, "q4_0": 0.1, "q4_1": 0.09}.get(dtype, 0.08)
    down = stored["model.layers.1.mlp.down_proj.weight"]
    assert relative_rms(values_of(path, "blk.1.ffn_down.weight"), down) < coarse
    k = stored["model.layers.0.self_attn.k_proj.weight"]
    permuted = k.reshape(wide.KV_HEADS, 2, -1, wide.HIDDEN).swapaxes(1, 2).reshape(k.shape)
    assert relative_rms(values_of(path, "blk.0.attn_k.weight"), permuted) < coarse


def test_metadata(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.gguf"
    quantize_file(model, path, "q4_1")
    fields = gguf.GGUFReader(path).fields
    found = {name: fields[name].contents() for name in fields}
    assert found["general.architecture"] == "llama"
    assert (found["general.file_type"], found["general.quantization_version"]) == (3, 2)
    assert found["general.name"] == "wide"
    expected = {"block_count": 2, "embedding_length": 256, "feed_forward_length": 512, "context_length": 256}
    expected |= {"attention.head_count": 8, "attention.head_count_kv": 2, "rope.dimension_count": 32}
    assert {key: found[f"llama.{key}"] for key in expected} == expected
    assert found["llama.rope.freq_base"] == 10000.0
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert found["tokenizer.chat_template"] == wide.CHAT_TEMPLATE
    with GGUFFile.open(path) as file:
        tokenizer, original = Tokenizer.from_gguf(file.metadata), Tokenizer.from_file(model)
        assert describe(path, EngineOptions()).plan_hash == describe(model, EngineOptions()).plan_hash
    assert tokenizer.encode("the inner theory 12") == original.encode("the inner theory 12")
    assert (tokenizer.bos_id, tokenizer.eos_ids[0]) == (original.bos_id, original.eos_ids[0])


def test_a_requantised_file_keeps_its_metadata(model: Path, tmp_path: Path) -> None:
    quantize_file(model, tmp_path / "a.gguf", "q8_0")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    source = gguf.GGUFReader(tmp_path / "a.gguf")
    for name, field in source.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    writer.add_key_value("custom.signed", -5, gguf.GGUFValueType.INT16)
    writer.add_key_value("custom.wide", 1 << 40, gguf.GGUFValueType.UINT64)
    writer.add_key_value("custom.list", [1.5, 2.5], gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.FLOAT64)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quantize_file(tmp_path / "b.gguf", tmp_path / "c.gguf", "q4_0")
    before, after = (gguf.GGUFReader(tmp_path / name).fields for name in ("b.gguf", "c.gguf"))
    assert set(before) == set(after)
    for name in set(before) - {"general.file_type", "GGUF.tensor_count", "GGUF.kv_count"}:
        assert before[name].types == after[name].types
        assert before[name].contents() == after[name].contents()
    assert after["general.file_type"].contents() == 2


def test_requantising_is_the_same_as_quantising_what_was_decoded(model: Path, tmp_path: Path) -> None:
    """From q8_0 to f32 and on, or at once; and a matrix that has the type already is copied."""
    quantize_file(model, tmp_path / "q8.gguf", "q8_0")
    quantize_file(tmp_path / "q8.gguf", tmp_path / "f32.gguf", "f32")
    quantize_file(tmp_path / "f32.gguf", tmp_path / "by_f32.gguf", "q4_1")
    quantize_file(tmp_path / "q8.gguf", tmp_path / "at_once.gguf", "q4_1")
    assert (tmp_path / "by_f32.gguf").read_bytes() == (tmp_path / "at_once.gguf").read_bytes()
    quantize_file(tmp_path / "q8.gguf", tmp_path / "again.gguf", "q8_0")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "q8.gguf").read_bytes()


def test_what_is_low_already_is_quantised_again_on_demand_only(model: Path, tmp_path: Path) -> None:
    quantize_file(model, tmp_path / "q4.gguf", "q4_0")
    with pytest.raises(UnsupportedModel, match=r"q4_0 already.*--allow-requantize"):
        quantize_file(tmp_path / "q4.gguf", tmp_path / "q5.gguf", "q5_0")
    assert not list(tmp_path.glob("*q5*"))
    quantize_file(tmp_path / "q4.gguf", tmp_path / "q5.gguf", "q5_0", allow_requantize=True)
    assert types_of(tmp_path / "q5.gguf")["blk.0.ffn_up.weight"] == "q5_0"


def test_quantising_on_load_refuses_what_is_quantised(model: Path, tmp_path: Path) -> None:
    quantize_file(model, tmp_path / "q8.gguf", "q8_0")
    with pytest.raises(UnsupportedModel, match=r"is q8_0 already"):
        LLM(tmp_path / "q8.gguf", quantize="q4_0")
    with pytest.raises(InvalidRequest, match="quantize must be one of"):
        EngineOptions(quantize="q9_9")
    quantize_file(model, tmp_path / "bf16.gguf", "bf16")
    assert np.array_equal(logits(tmp_path / "bf16.gguf", quantize="q8_0"), logits(model, quantize="q8_0"))


def test_the_quote_sees_the_quantised_types(model: Path) -> None:
    """256 columns of q8_0 take 34/32 bytes each, of bf16 two."""
    plain, quantised = (describe(model, EngineOptions(quantize=q)).memory_quote.weights_bytes for q in (None, "q8_0"))
    matrices = sum(x.size for x in wide.tensors().values() if x.ndim == 2)
    assert plain - quantised == pytest.approx(matrices * (2 - 34 / 32), rel=0.01)


def test_bad_values_are_refused_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = wide.tensors()
    good["model.layers.1.mlp.up_proj.weight"][300, 7] = np.nan
    monkeypatch.setattr(wide, "tensors", lambda: good)
    model = wide.save(tmp_path / "nan")
    target = tmp_path / "q.gguf"
    target.write_bytes(b"before")
    with pytest.raises(InvalidWeights, match=r"blk.1.ffn_up.weight.*row 300"):
        quantize_file(model, target, "q4_k", force=True)
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan", "q.gguf"]
    with pytest.raises(InvalidWeights, match=r"layers.1.mlp.up.*row 300"):
        LLM(model, quantize="q8_0")


def test_values_past_the_range_of_f16_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = wide.tensors()
    large["model.layers.0.mlp.down_proj.weight"][9, 9] = 7e4
    monkeypatch.setattr(wide, "tensors", lambda: large)
    model = wide.save(tmp_path / "large")
    with pytest.raises(InvalidWeights, match=r"blk.0.ffn_down.weight.*row 9: .* too large for f16"):
        quantize_file(model, tmp_path / "q.gguf", "f16")
    quantize_file(model, tmp_path / "q.gguf", "bf16")


def test_what_gguf_cannot_say_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    for changes, name in (
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {**yarn, "truncate": False}}, "rope"),
        ({"rope_scaling": {**yarn, "attention_factor": 1.25}}, "rope"),
    ):
        folder = tmp_path / name
        shutil.copytree(model, folder, dirs_exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**wide.CONFIG, **changes}))
        with pytest.raises(UnsupportedModel, match=f"^{name}: the model has"):
            quantize_file(folder, tmp_path / "q.gguf", "q8_0")
    (folder / "config.json").write_text(json.dumps(wide.CONFIG))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"no tokenizer.json"):
        quantize_file(folder, tmp_path / "q.gguf", "q8_0")
    assert not list(tmp_path.glob("*q.gguf*"))


def test_targets_are_checked_first(model: Path, tmp_path: Path) -> None:
    existing = tmp_path / "here.gguf"
    existing.write_bytes(b"x")
    for target, message in (
        (existing, "exists; --force"),
        (tmp_path / "no" / "x.gguf", "no such directory"),
        (tmp_path / "x.bin", "must be named .gguf"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            quantize_file(model, target, "q8_0")
    with pytest.raises(InvalidRequest, match="type must be one of"):
        quantize_file(model, tmp_path / "x.gguf", "q3_x")
    assert existing.read_bytes() == b"x"
    quantize_file(model, existing, "q8_0", force=True)
    (tmp_path / "broken.gguf").write_bytes(existing.read_bytes()[:5000])
    with pytest.raises(InvalidFile):
        quantize_file(tmp_path / "broken.gguf", tmp_path / "y.gguf", "q8_0")
    assert not (tmp_path / "y.gguf").exists()
