"""The strict JSON reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from treadle.errors import InvalidFile, ModelNotFound
from treadle.formats.json_file import parse_json, read_json


def test_reads_an_object(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"a": [1, {"b": null}], "é": 1.5e3}')
    assert read_json(tmp_path / "c.json") == {"a": [1, {"b": None}], "é": 1500.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' appears twice"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "nested more than 64"),
        (b'{"a": ' + b"[" * 100000, "nested more than 64"),
        (b'{"a": "\xff"}', "0xff at 7"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_refuses(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(InvalidFile, match=message):
        read_json(path)


def test_size_and_absence(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(b'{"a": 1}')
    with pytest.raises(InvalidFile, match="at most 7 bytes"):
        read_json(path, max_bytes=7)
    with pytest.raises(ModelNotFound):
        read_json(tmp_path / "none.json")
    with pytest.raises(InvalidFile):
        read_json(tmp_path)


def test_depth_is_exact() -> None:
    assert parse_json(b"[[[]]]", "x", max_depth=3) == [[[]]]
    with pytest.raises(InvalidFile, match="nested"):
        parse_json(b"[[[]]]", "x", max_depth=2)


def test_infinity_where_it_is_asked_for():
    assert parse_json(b'{"limits": [0.0, Infinity]}', "f", infinity=True) == {"limits": [0.0, float("inf")]}
    for text in (b"[Infinity]", b"[-Infinity]", b"[NaN]"):
        with pytest.raises(InvalidFile, match="is not JSON"):
            parse_json(text, "f", infinity=text != b"[Infinity]")
