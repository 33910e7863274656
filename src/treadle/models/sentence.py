"""What the files of sentence-transformers beside config.json say of an encoder: pooling, normalisation, length.

modules.json lists the modules that a text goes through, each with its own folder (Reimers and Gurevych 2019,
arXiv:1908.10084; sentence_transformers' SentenceTransformer). What is not understood in them is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final, NoReturn

import msgspec

from treadle.errors import UnsupportedModel
from treadle.formats.json_file import parse_json, read_bounded, read_json
from treadle.plan.params import Pooling

CHAIN: Final = ("Transformer", "Pooling", "Normalize")
"""The modules that are understood, in their order; the last may be missing."""
POOLING_FLAGS: Final[Mapping[str, Pooling | None]] = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_lasttoken": Pooling.LAST,
    "pooling_mode_max_tokens": None,
    "pooling_mode_mean_sqrt_len_tokens": None,
    "pooling_mode_weightedmean_tokens": None,
}
"""Flags of 1_Pooling/config.json; exactly one must be set, to one of those that this version has."""


class Sentence(msgspec.Struct, frozen=True):
    """`width`: of the pooled rows. `max_length`: tokens that the model was made for; None: all positions."""

    pooling: Pooling
    normalise: bool
    width: int
    max_length: int | None = None


def read_sentence(directory: Path) -> Sentence | None:
    """None for a directory without modules.json. Raises InvalidFile (damaged) or UnsupportedModel."""
    if not (directory / "modules.json").is_file():
        return None
    modules = _modules(directory / "modules.json")
    if tuple(kind for kind, _ in modules) not in (CHAIN, CHAIN[:2]):
        chain = " -> ".join(kind for kind, _ in modules)
        raise UnsupportedModel(
            f"modules.json: {chain} is not supported; supported: Transformer -> Pooling [-> Normalize]"
        )
    if modules[0][1]:
        raise UnsupportedModel(f"modules.json: Transformer in {modules[0][1]!r}; expected it beside modules.json")
    _refuse_default_prompt(directory / "config_sentence_transformers.json")
    pooling, width = _pooling(directory / modules[1][1] / "config.json")
    return Sentence(pooling, len(modules) == len(CHAIN), width, _max_length(directory / "sentence_bert_config.json"))


def _modules(path: Path) -> list[tuple[str, str]]:
    """(kind, folder) of each module."""
    listed = parse_json(read_bounded(path), str(path))
    if not isinstance(listed, list):
        _refuse(path, "the file", listed, "a list of modules")
    found = []
    for module in listed:
        kind, folder = (module.get(key) for key in ("type", "path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(folder, str):
            _refuse(path, "a module", module, "an object with type and path")
        parts = PurePosixPath(folder).parts
        if len(parts) > 1 or ".." in parts or folder.startswith("/"):
            _refuse(path, "path", folder, "a folder beside it")
        package, _, name = kind.rpartition(".")
        found.append((name if package.split(".")[0] == "sentence_transformers" else kind, folder))
    return found


def _pooling(path: Path) -> tuple[Pooling, int]:
    values = read_json(path)
    values.pop("include_prompt", None)  # prompts are the caller's
    width = values.pop("word_embedding_dimension", values.pop("embedding_dimension", None))
    if type(width) is not int:
        _refuse(path, "word_embedding_dimension", width, "an integer")
    named = values.pop("pooling_mode", None)
    if named is not None:
        names = {pooling.name.lower(): pooling for pooling in Pooling} | {"lasttoken": Pooling.LAST}
        if named not in names or any(values.values()):
            _refuse(path, "pooling_mode", named, ", ".join(names))
        return names[named], width
    for key, value in values.items():
        if key not in POOLING_FLAGS or type(value) is not bool:
            _refuse(path, key, value, f"true or false for one of {', '.join(POOLING_FLAGS)}")
    chosen = [key for key, value in values.items() if value]
    pooling = POOLING_FLAGS[chosen[0]] if len(chosen) == 1 else None
    if pooling is None:
        supported = ", ".join(key for key, known in POOLING_FLAGS.items() if known is not None)
        _refuse(path, "pooling", ", ".join(chosen) or None, f"one of {supported}")
    return pooling, width


def _max_length(path: Path) -> int | None:
    values = read_json(path) if path.is_file() else {}
    if values.pop("do_lower_case", False) is not False:
        _refuse(path, "do_lower_case", True, "false; the tokenizer lower-cases where the model wants it")
    length = values.pop("max_seq_length", None)
    if length is not None and (type(length) is not int or length < 1):
        _refuse(path, "max_seq_length", length, "a positive integer")
    for key, value in values.items():
        _refuse(path, key, value, "max_seq_length, do_lower_case")
    return length


def _refuse_default_prompt(path: Path) -> None:
    name = read_json(path).get("default_prompt_name") if path.is_file() else None
    if name is not None:
        _refuse(path, "default_prompt_name", name, "null; put the prompt in front of the texts")


def _refuse(path: Path, key: str, found: object, expected: str) -> NoReturn:
    raise UnsupportedModel(f"{path.name}: {key}: found {found!r:.80}, supported: {expected}")
