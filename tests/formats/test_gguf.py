"""The GGUF reader against gguf-py on good files, and against hand-made bad ones."""

from __future__ import annotations

import re
import struct
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import InvalidFile, InvalidWeights, ModelNotFound, TreadleError, UnsupportedModel
from treadle.formats.gguf import GGML_TYPES, GGUFFile, StringArray
from treadle.formats.gguf_writer import GGUFWriter
from treadle.formats.tensors import TensorSource

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def pair(key: str, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def tensor(name: str, dims: list[int], dtype: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims) + struct.pack("<IQ", dtype, offset)


def build(
    pairs: list[bytes] = [],  # noqa: B006 - never changed
    tensors: list[bytes] = [],  # noqa: B006
    data: bytes = b"",
    version: int = 3,
    alignment: int = 32,
    counts: tuple[int, int] | None = None,
) -> bytes:
    tensor_count, pair_count = counts or (len(tensors), len(pairs))
    header = b"GGUF" + struct.pack("<IQQ", version, tensor_count, pair_count) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    def open_bytes(content: bytes) -> GGUFFile:
        path = tmp_path / "x.gguf"
        path.write_bytes(content)
        return GGUFFile.open(path)

    return open_bytes


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | StringArray) else value


def test_smollm2_agrees_with_gguf_py(smollm2: Path) -> None:
    ours, theirs = GGUFFile.open(smollm2), gguf.GGUFReader(smollm2)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for name, field in fields.items():
        if len(field.data) < 1000:
            assert plain(ours.metadata[name]) == field.contents(), name
    tokens = fields["tokenizer.ggml.tokens"]
    assert ours.metadata["tokenizer.ggml.tokens"].tolist() == [bytes(tokens.parts[at]).decode() for at in tokens.data]
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        info = ours.info(t.name)
        assert (info.dtype, info.offset, info.nbytes) == (t.tensor_type.name.lower(), t.data_offset, t.n_bytes)
        assert info.shape == tuple(int(n) for n in reversed(t.shape))
        assert np.array_equal(ours.raw(t.name), np.asarray(t.data).reshape(-1).view(np.uint8))
    assert ours.architecture == "llama"
    assert isinstance(ours, TensorSource)
    assert ours.container == "gguf"


def test_a_50k_vocabulary_opens_fast(smollm2: Path) -> None:
    """CPU time, since the machine may be busy: some 0.02 s on a quiet core."""

    def seconds() -> float:
        start = time.thread_time()
        GGUFFile.open(smollm2)
        return time.thread_time() - start

    assert min(seconds() for _ in range(5)) < 0.2


def test_types_are_those_of_gguf_py() -> None:
    assert {kind.value: kind.name.lower() for kind in gguf.GGMLQuantizationType} == dict(GGML_TYPES)


def test_every_metadata_type_written_by_gguf_py(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    values = {
        "u8": 200,
        "i8": -7,
        "u16": 60000,
        "i16": -300,
        "u32": 1 << 31,
        "i32": -5,
        "u64": 1 << 63,
        "i64": -(1 << 62),
    }
    for name, value in values.items():
        getattr(writer, "add_" + {"u": "uint", "i": "int"}[name[0]] + name[1:])(name, value)
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "naïve 日本 \0 end")
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("strings", ["a", "", "日"])
    writer.add_array("truths", [True, False])
    writer.add_array("nested", [[1, 2], [3]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        found = {name: plain(value) for name, value in file.metadata.items()}
    nested = [part.tolist() for part in found.pop("nested")]
    assert nested == [[1, 2], [3]]
    assert found == {"general.architecture": "llama", **values} | {
        "f32": float(np.float32(0.1)), "f64": 0.1, "yes": True, "text": "naïve 日本 \0 end",
        "numbers": [1, -2, 3], "strings": ["a", "", "日"], "truths": [True, False],
    }  # fmt: skip
    assert type(found["yes"]) is bool


numbers = (
    st.integers(-(1 << 63), (1 << 64) - 1) | st.booleans() | st.floats(width=32, allow_nan=False) | st.text(max_size=20)
)
lists = st.lists(st.integers(-(1 << 31), (1 << 32) - 1), min_size=1, max_size=5) | st.lists(
    st.text(), min_size=1, max_size=5
)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(
    st.dictionaries(st.text(min_size=1, max_size=9), numbers | lists, max_size=6),
    st.lists(shapes, max_size=4),
    st.integers(3, 9),
)
def test_what_is_written_is_read_by_us_and_by_gguf_py(
    metadata: dict[str, Any], dims: list[list[int]], power: int
) -> None:
    import tempfile

    metadata = {key: value for key, value in metadata.items() if not isinstance(value, list) or _one_type(value)}
    writer = GGUFWriter("any", alignment=1 << power)
    for key, value in metadata.items():
        writer.add("k." + key, value)
    arrays = [np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + n for n, shape in enumerate(dims)]
    for n, array in enumerate(arrays):
        writer.add_tensor(f"t{n}", array)
    with tempfile.TemporaryDirectory() as directory:
        path = writer.save(Path(directory) / "x.gguf")
        ours, theirs = GGUFFile.open(path), gguf.GGUFReader(path)
        assert {k: plain(v) for k, v in ours.metadata.items() if k.startswith("k.")} == {
            f"k.{k}": v for k, v in metadata.items()
        }
        for n, (array, t) in enumerate(zip(arrays, theirs.tensors, strict=True)):
            assert np.array_equal(ours.raw(f"t{n}").view("<f4").reshape(ours.info(f"t{n}").shape), array)
            assert np.array_equal(np.asarray(t.data).reshape(array.shape), array)
        del theirs


def _one_type(values: list[Any]) -> bool:
    return isinstance(values[0], str) or max(values) < 1 << 31 or min(values) >= 0


def test_version_2_is_read(opened: Any) -> None:
    file = opened(build([pair("k", U32, struct.pack("<I", 7))], [tensor("t", [2])], bytes(8), version=2))
    assert (file.version, file.metadata["k"], file.info("t").shape) == (2, 7, (2,))


def test_shape_is_reversed_and_bytes_are_a_view(opened: Any) -> None:
    data = np.arange(6, dtype="<f4")
    file = opened(build([], [tensor("t", [3, 2])], data.tobytes()))
    raw = file.raw("t")
    assert file.info("t").shape == (2, 3)
    assert np.array_equal(raw.view("<f4"), data)
    assert not raw.flags.owndata
    assert not raw.flags.writeable
    file.drop("t")
    file.close()
    assert np.array_equal(raw.view("<f4"), data)
    with pytest.raises(InvalidWeights, match="nope"):
        file.raw("nope")


def resident_file_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssFile:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_drop_gives_the_pages_back(opened: Any) -> None:
    nbytes = 32 << 20
    file = opened(build([], [tensor("t", [nbytes // 4])], bytes(nbytes)))
    before = resident_file_bytes()
    assert file.raw("t").sum() == 0
    assert resident_file_bytes() - before > nbytes // 2
    file.drop("t")
    assert resident_file_bytes() - before < nbytes // 16
    assert file.raw("t").sum() == 0


def array(kind: int, count: int, payload: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def nested(depth: int) -> bytes:
    return array(ARRAY, 1, nested(depth - 1)) if depth else array(U8, 1, b"\1")


LONG = struct.pack("<Q", 1 << 62)
BAD = {
    "magic": (b"GGML" + build()[4:], "magic"),
    "empty header": (b"GGUF", "version"),
    "version 1": (build(version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "too many tensors": (build(counts=(1 << 60, 0)), "tensor_count"),
    "too much metadata": (build(counts=(0, 1 << 60)), "metadata_kv_count"),
    "more tensors than there are": (build(counts=(2, 0), data=bytes(64)), "rank"),
    "key twice": (build([pair("k", U8, b"\1"), pair("k", U8, b"\2")]), "'k' again"),
    "key not UTF-8": (build([text(b"\xff\xfe") + struct.pack("<IB", U8, 1)]), "metadata key 0"),
    "key length": (build([struct.pack("<Q", 1 << 63) + bytes(32)]), "metadata key 0 length"),
    "unknown value type": (build([pair("k", 13, bytes(8))]), "metadata k type"),
    "boolean 2": (build([pair("k", BOOL, b"\2")]), "metadata k"),
    "string past the end": (build([pair("k", STRING, struct.pack("<Q", 1000) + b"abc")]), "metadata k"),
    "string not UTF-8": (build([pair("k", STRING, text(b"\xc3\x28"))]), "metadata k"),
    "array past the end": (build([pair("k", ARRAY, array(U32, 1 << 61, b""))]), "metadata k"),
    "array of unknown type": (build([pair("k", ARRAY, array(99, 1, bytes(8)))]), "metadata k item type"),
    "array nested too deep": (build([pair("k", ARRAY, nested(9))]), "nested"),
    "too many nested arrays": (build([pair("k", ARRAY, array(ARRAY, 1 << 40, b""))]), "arrays inside arrays"),
    "too many strings": (build([pair("k", ARRAY, array(STRING, 1 << 40, b""))]), "array strings"),
    "string item past the end": (build([pair("k", ARRAY, array(STRING, 2, text("") + LONG))]), "metadata k"),
    "string items cut": (build([pair("k", ARRAY, array(STRING, 900, text("a")))]), "metadata k"),
    "alignment 0": (build([pair("general.alignment", U32, struct.pack("<I", 0))]), "general.alignment"),
    "alignment 48": (build([pair("general.alignment", U32, struct.pack("<I", 48))]), "general.alignment"),
    "alignment text": (build([pair("general.alignment", STRING, text("32"))]), "general.alignment"),
    "one of several parts": (build([pair("split.count", U32, struct.pack("<I", 3))]), "split.count"),
    "tensor twice": (build([], [tensor("t", [1]), tensor("t", [1], offset=32)], bytes(64)), "'t' again"),
    "rank 0": (build([], [tensor("t", [])], bytes(64)), "rank"),
    "rank 5": (build([], [tensor("t", [1] * 5)], bytes(64)), "rank"),
    "dimension 0": (build([], [tensor("t", [4, 0])], bytes(64)), "shape"),
    "size overflows": (build([], [tensor("t", [1 << 62, 1 << 62])], bytes(64)), "data"),
    "unknown tensor type": (build([], [tensor("t", [32], dtype=4)], bytes(64)), "ggml type 4"),
    "half a block": (build([], [tensor("t", [33], dtype=2)], bytes(64)), "multiples of 32"),
    "offset not aligned": (build([], [tensor("t", [1], offset=4)], bytes(64)), "alignment"),
    "data past the end": (build([], [tensor("t", [99])], bytes(64)), "data"),
    "offset past the end": (build([], [tensor("t", [1], offset=1 << 63)], bytes(64)), "data"),
    "overlap": (build([], [tensor("a", [16]), tensor("b", [16], offset=32)], bytes(96)), "overlap"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused_by_name(name: str, opened: Any) -> None:
    content, expected = BAD[name]
    with pytest.raises((InvalidFile, UnsupportedModel), match=expected):
        opened(content)


def test_good_neighbours_of_the_bad_files_open(opened: Any) -> None:
    """The builders of BAD are right: the same files without the flaw are accepted."""
    opened(build())
    opened(build([pair("k", ARRAY, nested(3)), pair("b", BOOL, b"\1"), pair("s", STRING, text("é"))]))
    opened(build([pair("general.alignment", U32, struct.pack("<I", 64))], [tensor("t", [1])], bytes(64), alignment=64))
    opened(build([], [tensor("a", [16]), tensor("b", [32], dtype=2, offset=64)], bytes(96)))


def test_every_truncation_is_refused(opened: Any) -> None:
    whole = build(
        [pair("s", ARRAY, array(STRING, 2, text("ab") + text("c"))), pair("n", ARRAY, array(U64, 2, bytes(16)))],
        [tensor("t", [3, 2]), tensor("u", [1], offset=32)],
        bytes(36),
    )
    opened(whole)
    for length in range(len(whole)):
        with pytest.raises(TreadleError):
            opened(whole[:length])


def test_string_items_are_checked_when_they_are_decoded(opened: Any) -> None:
    file = opened(build([pair("k", ARRAY, array(STRING, 2, text("ok") + text(b"\xff")))]))
    assert len(file.metadata["k"]) == 2
    with pytest.raises(InvalidFile, match=r"metadata k\[1\]"):
        file.metadata["k"].tolist()


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        GGUFFile.open(tmp_path / "none.gguf")
    with pytest.raises(InvalidFile):
        GGUFFile.open(tmp_path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"old")
    monkeypatch.setattr(GGUFWriter, "_write", lambda self, file, progress: [][0])
    with pytest.raises(IndexError):
        GGUFWriter("any").save(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_writer_refuses_what_gguf_cannot_hold() -> None:
    writer = GGUFWriter("any")
    with pytest.raises(ValueError, match="twice"):
        writer.add("general.architecture", "other")
    with pytest.raises(ValueError, match="complex128"):
        writer.add("k", np.array([1j]))
    with pytest.raises(InvalidWeights, match="multiples of 32"):
        writer.add_tensor("t", np.zeros((2, 33)), "q8_0")


STRINGS = [[], [""], ["a"], ["", "a", ""], ["a\0b", "c"], ["\0"], ["日本", "\u2581", "x" * 300]]


@pytest.mark.parametrize("items", STRINGS)
def test_string_arrays_read_as_they_were_written(items, opened):
    encoded = struct.pack("<IQ", 8, len(items)) + b"".join(text(item) for item in items)
    found = opened(build([pair("words", 9, encoded)], [tensor("t", [1])], bytes(4))).metadata["words"]
    assert found.tolist() == items and len(found) == len(items)
    assert StringArray.of("words", items).tolist() == items
