"""Builds a Tokenizer from a Hugging Face tokenizer.json and the config files beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from treadle.errors import InvalidFile, UnsupportedModel
from treadle.formats.byte_level import byte_level_bytes, byte_token
from treadle.formats.json_file import read_bounded, read_json
from treadle.formats.tokenizer_parts import PieceTable, TokenizerParts, guarded

__all__ = ["load_json"]

MAX_BYTES = 64 << 20
SPACE = "\u2581"
ByteRule = Callable[[str], bytes]


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _Model(msgspec.Struct):
    type: str | None = None
    continuing_subword_prefix: str | None = None


class _File(msgspec.Struct):
    """The parts of a tokenizer.json that decoding and checking need; the library reads the rest."""

    model: _Model
    added_tokens: list[_Added] = []
    decoder: dict[str, Any] | None = None


def load_json(path: Path) -> TokenizerParts:
    """See Tokenizer.from_file."""
    if path.is_dir():
        path = path / "tokenizer.json"
    data = read_bounded(path, MAX_BYTES)
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidFile(f"{path}: {error}") from None
    _refuse_subword_prefix(path, file.model)
    with guarded(str(path)):
        backend = tokenizers.Tokenizer.from_buffer(data)
        backend.no_truncation()
        backend.no_padding()
        vocab_size = backend.get_vocab_size(with_added_tokens=True)
    to_bytes, space_prefix = _decoder_rule(path, file.decoder)
    bos, eos = _special_ids(path.parent, backend)
    return TokenizerParts(
        backend,
        PieceTable(_lookup(backend, file.added_tokens, to_bytes), _special(file.added_tokens), space_prefix),
        vocab_size=vocab_size,
        bos_id=bos,
        eos_ids=eos,
    )


def _refuse_subword_prefix(path: Path, model: _Model) -> None:
    """The library cuts the prefix off merges without looking; where it is not there the process is aborted."""
    prefix = model.continuing_subword_prefix
    if prefix and model.type != "WordPiece":
        raise UnsupportedModel(f"{path}: model.continuing_subword_prefix {prefix!r:.40} is not supported for BPE")


def _special(added: list[_Added]) -> frozenset[int]:
    return frozenset(token.id for token in added if token.special)


def _lookup(backend: tokenizers.Tokenizer, added: list[_Added], to_bytes: ByteRule) -> Callable[[int], bytes | None]:
    """Control tokens stand for their own text; so do all added ones where the others spell bytes."""
    verbatim = {token.id: token.content for token in added if token.special or to_bytes is byte_level_bytes}

    def lookup(token_id: int) -> bytes | None:
        if token_id in verbatim:
            return verbatim[token_id].encode()
        token = backend.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None
        return None if token is None else to_bytes(token)

    return lookup


def _decoder_rule(path: Path, decoder: dict[str, Any] | None) -> tuple[ByteRule, bool]:
    """How one token becomes bytes, and whether a space comes off the front of a text."""
    steps = _flatten(decoder) if decoder else []
    match [step.get("type") for step in steps]:
        case []:
            return lambda token: b" " + token.encode(), True
        case ["ByteLevel"]:
            return byte_level_bytes, False
        case ["Metaspace"]:
            first = steps[0]
            scheme = first.get("prepend_scheme", "always" if first.get("add_prefix_space", True) else "never")
            return _spaced(str(first.get("replacement", SPACE))), scheme != "never"
        case ["Replace", "ByteFallback", "Fuse"] if _replaces_with_space(steps[0]):
            return _byte_fallback(_spaced(steps[0]["pattern"]["String"])), False
        case ["Replace", "ByteFallback", "Fuse", "Strip"] if _replaces_with_space(steps[0]) and _strips_one(steps[3]):
            return _byte_fallback(_spaced(steps[0]["pattern"]["String"])), True
        case ["WordPiece"]:
            return _word_piece(str(steps[0].get("prefix", "##"))), True
        case kinds:
            raise UnsupportedModel(f"{path}: decoder {kinds} is not supported")


def _flatten(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a decoder; only one level of sequence occurs in practice, deeper ones end as an unknown kind."""
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for step in decoder.get("decoders", []) if isinstance(step, dict)]


def _replaces_with_space(step: dict[str, Any]) -> bool:
    pattern = step.get("pattern")
    return isinstance(pattern, dict) and isinstance(pattern.get("String"), str) and step.get("content") == " "


def _strips_one(step: dict[str, Any]) -> bool:
    return (step.get("content"), step.get("start"), step.get("stop")) == (" ", 1, 0)


def _spaced(marker: str) -> ByteRule:
    return lambda token: token.replace(marker, " ").encode()


def _byte_fallback(otherwise: ByteRule) -> ByteRule:
    def to_bytes(token: str) -> bytes:
        byte = byte_token(token)
        return otherwise(token) if byte is None else byte

    return to_bytes


def _word_piece(prefix: str) -> ByteRule:
    return lambda token: token.removeprefix(prefix).encode() if token.startswith(prefix) else b" " + token.encode()


def _special_ids(directory: Path, backend: tokenizers.Tokenizer) -> tuple[int | None, tuple[int, ...]]:
    """BOS and the end ids: by number in generation_config.json and config.json, by text in tokenizer_config.json."""
    found: dict[str, list[int]] = {"bos": [], "eos": []}
    for file in ("generation_config.json", "tokenizer_config.json", "config.json"):
        if not (directory / file).is_file():
            continue
        config = read_json(directory / file)
        for kind, ids in found.items():
            ids += _ids(directory / file, f"{kind}_token_id", config.get(f"{kind}_token_id"))
            ids += _id_of_text(backend, config.get(f"{kind}_token"))
    return next(iter(found["bos"]), None), tuple(dict.fromkeys(found["eos"]))


def _ids(path: Path, field: str, value: Any) -> list[int]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for item in values:
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            raise InvalidFile(f"{path}: {field}: expected token ids, found {item!r:.80}")
    return values


def _id_of_text(backend: tokenizers.Tokenizer, token: Any) -> list[int]:
    text = token.get("content") if isinstance(token, dict) else token
    token_id = backend.token_to_id(text) if isinstance(text, str) else None
    return [] if token_id is None else [token_id]
