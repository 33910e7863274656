"""Turns a Hugging Face tokenizer into the metadata that GGUF keeps it in (``tokenizer.ggml.*``).

What has no equal there is refused by name. The result is read back and must agree with the original on every token's
bytes and on a text that meets every kind of split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from treadle.errors import InvalidFile, UnsupportedModel
from treadle.formats.byte_level import byte_token
from treadle.formats.chat_template import ChatTemplate
from treadle.formats.gguf import StringArray, Value
from treadle.formats.gguf_writer import Metadata
from treadle.formats.json_file import read_bounded
from treadle.formats.pre_tokenizers import PRE_TOKENIZERS
from treadle.formats.tokenizer import Tokenizer
from treadle.formats.tokenizer_gguf import (
    BYTE,
    CONTROL,
    NORMAL,
    PREFIX,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    merges_from_scores,
)
from treadle.formats.tokenizer_json import MAX_BYTES

__all__ = ["tokenizer_metadata"]

PROBE = """The quick (brown) fox can't jump 3.14159 or 1234567 times; he'll TRY, they've SAID it's CamelCase_snake.
\tdef f(x):\n        return x**2 + {"a": [1, 2]}   # tabs,   spaces \n\n\r\n  trailing   \n
Zażółć gęślą jaźń — naïve “quotes” … Привет, мир! Ελληνικά ١٢٣ 你好世界，今天2024年。 こんにちは 한국어
हिन्दी ภาษาไทย עברית
😀👩‍👩‍👧‍👦 e\u0301 \u00a0\u2003\u200b ½ ² Ⅷ <b>&amp;</b> https://example.org/a?b=c#d $100 50% x≤y ''s 'S 'Ll ''"""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class _Model(msgspec.Struct):
    """The model of a tokenizer.json, as far as BPE goes."""

    vocab: dict[str, int]
    merges: list[str | tuple[str, str]] = []
    type: str | None = "BPE"
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    dropout: float | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _File(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None


def tokenizer_metadata(directory: Path, vocab_size: int) -> dict[str, Metadata]:
    """Metadata for the tokenizer.json in ``directory`` and a model with ``vocab_size`` rows; rows without a token
    become unused tokens. Raises InvalidFile, UnsupportedModel.
    """
    path = directory / "tokenizer.json"
    file = _read(path)
    original = Tokenizer.from_file(path)
    tokens, types = _tokens(path, file, vocab_size)
    found: dict[str, Metadata] = {}
    if file.model.byte_fallback:
        found |= {"model": "llama", **_scores(path, file, tokens, types)}
    else:
        found |= {"model": "gpt2", "pre": _pre_name(path, file), "merges": _merges(path, file.model)}
    found |= {"tokens": tokens, "token_type": np.array(types, np.int32), **_special(path, original, file.model)}
    metadata = {PREFIX + name: value for name, value in found.items()}
    _compare(path, original, Tokenizer.from_gguf(_as_read(metadata)), types)
    template = ChatTemplate.from_directory(directory)
    return metadata | ({} if template is None else {"tokenizer.chat_template": template.source})


def _refuse(path: Path, what: str) -> NoReturn:
    raise UnsupportedModel(f"{path}: {what} has no equal in GGUF")


def _read(path: Path) -> _File:
    data = read_bounded(path, MAX_BYTES)
    try:
        kind = msgspec.json.decode(data, type=dict[str, Any]).get("model", {}).get("type", "BPE")
        if kind != "BPE":
            _refuse(path, f"a tokenizer model of type {kind!r}")
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError) as error:
        raise InvalidFile(f"{path}: {error}") from None
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if getattr(file.model, name):
            _refuse(path, f"model.{name}")
    return file


def _tokens(path: Path, file: _File, vocab_size: int) -> tuple[list[str], list[int]]:
    """The tokens by id, and their types."""
    by_id: dict[int, tuple[str, int]] = {}
    for token, number in file.model.vocab.items():
        kind = BYTE if file.model.byte_fallback and byte_token(token) is not None else NORMAL
        by_id[number] = (token, UNKNOWN if token == file.model.unk_token else kind)
    for added in file.added_tokens:
        kind = CONTROL if added.special else USER_DEFINED
        if added.content != file.model.unk_token:
            by_id[added.id] = (added.content, kind)
    if max(by_id, default=0) >= vocab_size:
        raise InvalidFile(f"{path}: token id {max(by_id)}, but the model has {vocab_size} rows")
    known = {token for token, _ in by_id.values()}
    if len(known) != len(by_id) or any(f"[PAD{i}]" in known for i in range(vocab_size) if i not in by_id):
        raise InvalidFile(f"{path}: two ids for one token")
    rows = [by_id.get(i, (f"[PAD{i}]", UNUSED)) for i in range(vocab_size)]
    return [token for token, _ in rows], [kind for _, kind in rows]


# --- byte-level BPE


def _pair(path: Path, merge: str | tuple[str, str]) -> tuple[str, str]:
    left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], " ", merge[1])
    if not left or not right:
        raise InvalidFile(f"{path}: model.merges: expected two parts, found {merge!r:.80}")
    return left, right


def _merges(path: Path, model: _Model) -> list[str]:
    pairs = [_pair(path, merge) for merge in model.merges]
    if not pairs or any(" " in left + right for left, right in pairs):
        _refuse(path, "a merge of tokens with spaces" if pairs else "a model without merges")
    return [f"{left} {right}" for left, right in pairs]


def _pre_name(path: Path, file: _File) -> str:
    """The name that stands for this way of splitting. Raises UnsupportedModel if none does."""
    if file.normalizer is not None and file.normalizer.get("normalizers") != []:
        _refuse(path, f"normalizer {file.normalizer.get('type')!r}")
    patterns = _patterns(path, file.pre_tokenizer)
    for name, pre in PRE_TOKENIZERS.items():
        if pre.ignore_merges == file.model.ignore_merges and tuple(map(_plain, pre.patterns)) == patterns:
            return name
    _refuse(path, f"the pre_tokenizer with the patterns {list(patterns)!r:.300}")


def _plain(pattern: str) -> str:
    """Without the closing alternative for spaces: what no alternative matches stays together all the same."""
    return pattern.removesuffix(r"|\s+")


def _patterns(path: Path, found: dict[str, Any] | None) -> tuple[str, ...]:
    steps = [found or {}] if (found or {}).get("type") != "Sequence" else (found or {}).get("pretokenizers", [])
    patterns: list[str] = []
    for step in steps:
        match step:
            case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"} if not step.get("invert"):
                patterns.append(regex)
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(r"\p{N}")
            case {"type": "ByteLevel"} if step is steps[-1] and not step.get("add_prefix_space", True):
                patterns += [_GPT2] if step.get("use_regex", True) else []
            case _:
                _refuse(path, f"pre_tokenizer step {step!r:.120}")
    if not steps or steps[-1].get("type") != "ByteLevel":
        _refuse(path, "a pre_tokenizer that does not end with ByteLevel")
    return tuple(map(_plain, patterns))


# --- SentencePiece BPE


def _scores(path: Path, file: _File, tokens: list[str], types: list[int]) -> dict[str, Metadata]:
    """Scores that rank merges as the file's list does, and whether a space goes before a text."""
    pairs = [_pair(path, merge) for merge in file.model.merges]
    rank: dict[str, int] = {}
    for left, right in pairs:
        rank.setdefault(left + right, len(rank))
    scores = np.array([-float(rank.get(token, len(rank))) for token in tokens], np.float32)
    derived = merges_from_scores(tokens, np.array(types), scores)
    if set(derived) != set(pairs) or [a + b for a, b in derived] != [a + b for a, b in pairs]:
        _refuse(path, "a list of merges that does not follow from scores of the tokens")
    return {"scores": scores, "add_space_prefix": _space_prefix(path, file)}


def _space_prefix(path: Path, file: _File) -> bool:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    match file.normalizer, file.pre_tokenizer:
        case {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": prepend}, step]}, None if (
            prepend == SPACE and step == replace
        ):
            return True
        case {"type": "Replace"}, None if file.normalizer == replace:
            return False
        case None, {"type": "Metaspace", "replacement": replacement} if replacement == SPACE:
            step = file.pre_tokenizer or {}
            scheme = step.get("prepend_scheme", "always")
            if step.get("split", True) is False and scheme in ("always", "first", "never"):
                return bool(scheme != "never")
    _refuse(path, f"normalizer {file.normalizer!r:.120} with pre_tokenizer {file.pre_tokenizer!r:.120}")


# --- special tokens, and the check


def _special(path: Path, original: Tokenizer, model: _Model) -> dict[str, Metadata]:
    """The special ids and what goes around a text."""
    found: dict[str, Metadata] = {}
    if original.bos_id is not None:
        found["bos_token_id"] = original.bos_id
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found |= dict(zip(names, original.eos_ids, strict=False))
    if model.unk_token is not None and model.unk_token in model.vocab:
        found["unknown_token_id"] = model.vocab[model.unk_token]
    inner, whole = original.encode("a b", add_special=False), original.encode("a b")
    begin, end = ([] if i is None else [i] for i in (original.bos_id, next(iter(original.eos_ids), None)))
    for add_bos in (False, True):
        for add_eos in (False, True):
            if whole == [*(begin if add_bos else []), *inner, *(end if add_eos else [])]:
                return found | {"add_bos_token": add_bos, "add_eos_token": add_eos}
    _refuse(path, f"a post_processor that turns {inner} into {whole}")


def _as_read(metadata: Mapping[str, Metadata]) -> dict[str, Value]:
    """The metadata as a reader would give it back."""

    def read(key: str, value: Metadata) -> Value:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return StringArray.of(key, [str(item) for item in value])
        assert isinstance(value, bool | int | str | np.ndarray)
        return value

    return {key: read(key, value) for key, value in metadata.items()}


def _compare(path: Path, original: Tokenizer, read_back: Tokenizer, types: Sequence[int]) -> None:
    """Raises UnsupportedModel where the tokenizer does not survive the way through GGUF."""
    for number, kind in enumerate(types):
        if kind != UNUSED and original.token_bytes(number) != read_back.token_bytes(number):
            _refuse(path, f"token {number} ({original.token_bytes(number)!r:.60})")
    missing = set(original.eos_ids) - set(read_back.eos_ids)
    if missing:
        _refuse(path, f"a fourth end token ({min(missing)})")
    for text in [*re.split(r"(?<=\n)", PROBE), PROBE]:
        if original.encode(text) != read_back.encode(text):
            _refuse(path, f"the way it encodes {text!r:.60}")
