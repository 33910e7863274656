"""Reads a JSON file from somebody else: caps on size and depth, no key twice, nothing outside the standard."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from treadle.errors import InvalidFile, ModelNotFound

__all__ = ["parse_json", "read_bounded", "read_json"]

MAX_BYTES = 4 << 20
MAX_DEPTH = 64


def read_json(
    path: str | os.PathLike[str], max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, infinity: bool = False
) -> dict[str, Any]:
    """The object in the file. Raises ModelNotFound if there is none, InvalidFile if it is not one clean JSON object."""
    value = parse_json(read_bounded(path, max_bytes), str(path), max_depth, infinity)
    if not isinstance(value, dict):
        raise InvalidFile(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_bounded(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a file of at most ``max_bytes``."""
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, max_bytes) + 1)
    except FileNotFoundError:
        raise ModelNotFound(f"{path}: no such file") from None
    except OSError as error:
        raise InvalidFile(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(data) > max_bytes:
        raise InvalidFile(f"{path}: expected at most {max_bytes} bytes, found more")
    return data


def parse_json(data: bytes, field: str, max_depth: int = MAX_DEPTH, infinity: bool = False) -> Any:
    """Parse UTF-8 JSON. ``field`` names the source in errors. Raises InvalidFile.

    ``infinity``: take the bare word Infinity, which is not JSON, but which Python writes.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise InvalidFile(f"{field}: key {_first_repeated(pairs)!r} appears twice in one object")
        return found

    def not_a_number(literal: str) -> float:
        if infinity and literal == "Infinity":
            return math.inf
        raise InvalidFile(f"{field}: {literal} is not JSON")

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=not_a_number)
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{field}: expected UTF-8, found byte {data[error.start]:#x} at {error.start}") from None
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        raise InvalidFile(f"{field}: not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidFile(f"{field}: nested more than {max_depth} deep") from None
    _check_depth(value, field, max_depth)
    return value


def _first_repeated(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    raise AssertionError("called without a repeated key")


def _check_depth(value: Any, field: str, max_depth: int) -> None:
    """Walk the containers level by level, without recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(max_depth):
        children = (child for item in level for child in (item.values() if isinstance(item, dict) else item))
        level = [child for child in children if isinstance(child, dict | list)]
    if level:
        raise InvalidFile(f"{field}: nested more than {max_depth} deep")
