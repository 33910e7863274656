"""The safetensors reader against the safetensors library, and against hand-made bad files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from treadle.errors import InvalidFile, InvalidWeights, ModelNotFound, TreadleError, UnsupportedModel
from treadle.formats.safetensors import SafetensorsFile
from treadle.formats.tensors import TensorSource, plain_array

TYPES = [
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]
DTYPES = [np.dtype(name) for name in TYPES] + [
    np.dtype(ml_dtypes.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e5m2),
]


def values(file: SafetensorsFile, name: str) -> np.ndarray[Any, Any]:
    info = file.info(name)
    return plain_array(file.raw(name), info.dtype, info.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_a_view_of_the_file(dtype: np.dtype[Any], tmp_path: Path) -> None:
    wanted = np.arange(12).reshape(3, 4).astype(dtype)
    save_file({"x": wanted, "scalar": np.array(wanted[0, 1])}, tmp_path / "a.safetensors")
    file = SafetensorsFile.open(tmp_path / "a.safetensors")
    assert np.array_equal(values(file, "x"), wanted)
    assert values(file, "x").dtype == dtype
    assert values(file, "scalar") == wanted[0, 1]
    assert not values(file, "x").flags.owndata
    file.drop("x")
    assert np.array_equal(values(file, "x"), wanted)


@given(st.dictionaries(st.text(min_size=1), st.lists(st.integers(0, 5), max_size=4), max_size=5), st.booleans())
def test_any_tensors_read_as_written(shapes: dict[str, list[int]], described: bool) -> None:
    import tempfile

    shapes.pop("__metadata__", None)
    wanted = {
        name: np.random.default_rng(n).random(shape, np.float32) for n, (name, shape) in enumerate(shapes.items())
    }
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.safetensors"
        save_file(wanted, path, metadata={"format": "np"} if described else None)
        file = SafetensorsFile.open(path)
        with safe_open(path, "np") as theirs:
            assert set(file.names()) == set(theirs.keys())
        assert dict(file.metadata) == ({"format": "np"} if described else {})
        for name, array in wanted.items():
            assert np.array_equal(values(file, name), array)


def sharded(directory: Path) -> dict[str, Any]:
    save_file({"a": np.float32([1, 2]), "b": np.float32([3])}, directory / "m-1.safetensors")
    save_file({"c": np.float32([4, 5])}, directory / "m-2.safetensors")
    return {"metadata": {}, "weight_map": {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}


def write_index(directory: Path, index: object) -> Path:
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def test_sharded(tmp_path: Path) -> None:
    write_index(tmp_path, sharded(tmp_path))
    with SafetensorsFile.open(tmp_path) as file:
        assert isinstance(file, TensorSource)
        assert file.container == "safetensors"
        assert {name: values(file, name).tolist() for name in file.names()} == {"a": [1, 2], "b": [3], "c": [4, 5]}
        assert file.info("c").part == 1
        with pytest.raises(InvalidWeights, match="'d'"):
            file.info("d")


BAD_INDEX = {
    "no weight_map": ({}, "weight_map"),
    "empty weight_map": ({"weight_map": {}}, "weight_map"),
    "list": ({"weight_map": ["a"]}, "weight_map"),
    "leaves the directory": ({"weight_map": {"a": "../m-1.safetensors"}}, "weight_map.a"),
    "absolute": ({"weight_map": {"a": "/etc/m.safetensors"}}, "weight_map.a"),
    "not safetensors": ({"weight_map": {"a": "pytorch_model.bin"}}, "weight_map.a"),
    "tensor missing in the shard": ({"weight_map": dict.fromkeys("abz", "m-1.safetensors")}, "z"),
    "tensor missing in the index": ({"weight_map": {"a": "m-1.safetensors"}}, "'b'"),
    "tensor in another shard": ({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}, "b"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INDEX)
def test_bad_index(name: str, tmp_path: Path) -> None:
    index, expected = BAD_INDEX[name]
    sharded(tmp_path)
    with pytest.raises(InvalidFile, match=expected):
        SafetensorsFile.open(write_index(tmp_path, index))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="neither"):
        SafetensorsFile.open(tmp_path)
    write_index(tmp_path, {"weight_map": {"a": "gone.safetensors"}})
    with pytest.raises(ModelNotFound, match="gone"):
        SafetensorsFile.open(tmp_path)


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def build(header: object, data: bytes = bytes(8)) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


BAD = {
    "no header": (b"\1\0", "header length"),
    "header past the end": (struct.pack("<Q", 1 << 62) + b"{}", "header length"),
    "header larger than allowed": (struct.pack("<Q", 9 << 20) + bytes(10 << 20), "header length"),
    "not JSON": (build(b"{]"), "header"),
    "not UTF-8": (build(b'{"\xff": 1}'), "header"),
    "not an object": (build([1]), "header"),
    "nested deep": (build(b'{"a":' + b"[" * 100000), "header"),
    "tensor twice": (build(b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2)), "appears twice"),
    "field twice": (build(b'{"a": {"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), "appears twice"),
    "field missing": (build({"a": {"dtype": "F32", "shape": [2]}}), "data_offsets"),
    "field unknown": (build({"a": {**entry(), "extra": 1}}), "extra"),
    "negative size": (build({"a": entry(shape=[-2])}), "shape"),
    "size is text": (build({"a": entry(shape=["2"])}), "shape"),
    "nine axes": (build({"a": entry(shape=[1] * 8 + [2])}), "shape"),
    "metadata not text": (build({"__metadata__": {"k": 1}, "a": entry()}), "header"),
    "offsets backwards": (build({"a": entry(offsets=[8, 0])}), "takes 8 bytes"),
    "wrong size": (build({"a": entry(offsets=[0, 4])}), "takes 8 bytes"),
    "size overflows": (build({"a": entry(shape=[1 << 40, 1 << 40])}), "takes"),
    "hole": (build({"a": entry(offsets=[8, 16])}, bytes(16)), "hole"),
    "overlap": (build({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "overlap"),
    "same bytes twice": (build({"a": entry(), "b": entry()}), "overlap"),
    "data too short": (build({"a": entry()}, bytes(4)), "data"),
    "data too long": (build({"a": entry()}, bytes(12)), "data"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, expected = BAD[name]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InvalidFile, match=expected):
        SafetensorsFile.open(tmp_path / "x.safetensors")


def test_unknown_dtype_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(build({"a": entry(dtype="F4")}))
    with pytest.raises(UnsupportedModel, match="'a': dtype 'F4'"):
        SafetensorsFile.open(tmp_path / "x.safetensors")


def test_the_good_neighbour_opens(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(build({"__metadata__": {"k": "v"}, "a": entry()}))
    assert SafetensorsFile.open(tmp_path / "x.safetensors").metadata == {"k": "v"}


@given(st.binary(max_size=60), st.integers(0, 100))
def test_accepts_no_more_than_the_library(noise: bytes, at: int) -> None:
    """Whatever we open, the reference library opens too; whatever we refuse, we refuse with a typed error."""
    import tempfile

    content = bytearray(build({"a": entry(), "b": entry("BF16", [2, 2], [8, 16])}, bytes(16)))
    content[at : at + len(noise)] = noise
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.safetensors"
        path.write_bytes(content)
        try:
            names = SafetensorsFile.open(path).names()
        except TreadleError:
            return
        try:
            with safe_open(path, "np") as theirs:
                assert set(theirs.keys()) == set(names)
        except SafetensorError as error:
            pytest.fail(f"we opened what the library refuses: {error}")
