"""Builds a Tokenizer from GGUF metadata: byte-level BPE (model "gpt2"), SentencePiece BPE by scores ("llama"),
WordPiece ("bert")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import cast

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from treadle.errors import InvalidFile, UnsupportedModel
from treadle.formats.byte_level import byte_level_bytes, byte_token
from treadle.formats.gguf import StringArray, Value
from treadle.formats.pre_tokenizers import PRE_TOKENIZERS
from treadle.formats.tokenizer_parts import PieceTable, TokenizerParts, guarded
from treadle.formats.tokenizer_splits import Pieces
from treadle.formats.tokenizer_wordpiece import piece_bytes, wordpiece

__all__ = ["load_gguf"]

Numbers = NDArray[np.generic]

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
SPACE = "\u2581"  # SentencePiece writes a space as this
MAX_TOKENS = 2_000_000
BERT_CLS, BERT_SEP = 101, 102
MAX_SCORED_TOKEN = 64  # characters; a longer piece cannot be made by merges

# A chat model's turn ends with one of these even where its file names only another end token (as in llama.cpp).
END_OF_TURN = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<end_of_utterance>"}
    | {"<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"}
    | {"<\uff5cend\u2581of\u2581sentence\uff5c>"}
)


def load_gguf(metadata: Mapping[str, Value]) -> TokenizerParts:
    """See Tokenizer.from_gguf."""
    fields = _Fields(metadata)
    model = fields.text("model")
    tokens = fields.strings("tokens")
    types = fields.token_types(len(tokens))
    if model == "bert":
        return _wordpiece(fields, tokens, types)
    if model == "gpt2":
        backend, pieces, add_bos = _byte_level(fields, tokens, types)
    elif model == "llama":
        backend, pieces, add_bos = _sentencepiece(fields, tokens, types)
    else:
        raise UnsupportedModel(f"metadata {PREFIX}model: {model!r} is not supported; supported: bert, gpt2, llama")
    bos = fields.token_id("bos_token_id", len(tokens))
    eos = fields.token_id("eos_token_id", len(tokens))
    add_bos = fields.flag("add_bos_token", add_bos)
    add_eos = fields.flag("add_eos_token", False)
    return TokenizerParts(
        backend,
        pieces,
        vocab_size=len(tokens),
        bos_id=bos,
        eos_ids=_end_ids(fields, tokens, types, eos),
        prefix_ids=(bos,) if add_bos and bos is not None else (),
        suffix_ids=(eos,) if add_eos and eos is not None else (),
    )


class _Fields:
    """Typed access to the tokenizer's metadata; each method raises InvalidFile naming the key."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self._metadata = metadata

    def get(self, name: str) -> Value | None:
        return self._metadata.get(PREFIX + name)

    def _fail(self, name: str, expected: str, found: object) -> InvalidFile:
        return InvalidFile(f"metadata {PREFIX}{name}: expected {expected}, found {found!r:.80}")

    def text(self, name: str, default: str | None = None) -> str:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._fail(name, "a string", value)
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._fail(name, "a boolean", value)
        return value

    def token_id(self, name: str, vocab_size: int) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
            raise self._fail(name, f"a token id below {vocab_size}", value)
        return value

    def strings(self, name: str) -> list[str]:
        value = self.get(name)
        if not isinstance(value, StringArray) or not 0 < len(value) <= MAX_TOKENS:
            raise self._fail(name, f"1..{MAX_TOKENS} strings", value)
        return value.tolist()

    def numbers(self, name: str, count: int) -> Numbers | None:
        """A numeric array of ``count`` items, or None if the file has no such key."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or len(value) != count:
            raise self._fail(name, f"{count} numbers", value)
        return value

    def token_types(self, count: int) -> Numbers:
        """A copy: tokens are looked up when the file is closed."""
        types = self.numbers("token_type", count)
        return np.full(count, NORMAL) if types is None else np.array(types)


def _of_kind(types: Numbers, *kinds: int) -> list[int]:
    return np.flatnonzero(np.isin(types, kinds)).tolist()


def _wordpiece(fields: _Fields, tokens: list[str], types: Numbers) -> TokenizerParts:
    """[CLS] and [SEP] have BERT's ids where the file names none, as in llama.cpp."""
    ends = [fields.token_id(name, len(tokens)) for name in ("cls_token_id", "seperator_token_id", "bos_token_id")]
    cls = next((found for found in (ends[0], ends[2]) if found is not None), BERT_CLS)
    sep = BERT_SEP if ends[1] is None else ends[1]
    if max(cls, sep) >= len(tokens):
        raise InvalidFile(f"metadata {PREFIX}cls_token_id: expected a token id below {len(tokens)}, found {cls}")
    control = frozenset(_of_kind(types, CONTROL, UNKNOWN))
    with guarded(f"metadata {PREFIX}tokens"):
        backend = wordpiece(tokens, control, cls, sep)
    pieces = _pieces(tokens, types, piece_bytes, (CONTROL, UNKNOWN), space_prefix=True)
    return TokenizerParts(backend, pieces, vocab_size=len(tokens), bos_id=None, eos_ids=())


def _byte_level(fields: _Fields, tokens: list[str], types: Numbers) -> tuple[tokenizers.Tokenizer, PieceTable, bool]:
    name = fields.text("pre", "default")
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModel(f"metadata {PREFIX}pre: unknown pre-tokenizer {name!r}")
    pre = PRE_TOKENIZERS[name]
    merges = _split_merges(fields.strings("merges"))
    with guarded(f"metadata {PREFIX}tokens and merges"):
        backend = tokenizers.Tokenizer(
            models.BPE(vocab=_vocabulary(tokens), merges=merges, ignore_merges=pre.ignore_merges)
        )
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, whole])
        _add_tokens(backend, tokens, types)
    return backend, _pieces(tokens, types, byte_level_bytes, (CONTROL, UNKNOWN, USER_DEFINED)), pre.add_bos


def _sentencepiece(fields: _Fields, tokens: list[str], types: Numbers) -> tuple[tokenizers.Tokenizer, PieceTable, bool]:
    """SentencePiece BPE: the adjacent pair whose joined piece scores highest is merged first; the rest are bytes."""
    scores = fields.numbers("scores", len(tokens))
    if scores is None:
        raise InvalidFile(f"metadata {PREFIX}scores: expected {len(tokens)} numbers, found nothing")
    space_prefix = fields.flag("add_space_prefix", True)
    merges = merges_from_scores(tokens, types, scores)
    unknown = fields.token_id("unknown_token_id", len(tokens))
    with guarded(f"metadata {PREFIX}tokens and scores"):
        model = models.BPE(
            vocab=_vocabulary(tokens),
            merges=merges,
            byte_fallback=True,
            fuse_unk=True,
            unk_token=None if unknown is None else tokens[unknown],
        )
        backend = tokenizers.Tokenizer(model)
        spaces = normalizers.Replace(" ", SPACE)
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if space_prefix else spaces
        _add_tokens(backend, tokens, types)
    return backend, _pieces(tokens, types, _sentencepiece_bytes, (CONTROL, UNKNOWN), space_prefix), True


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    """Token -> id. An empty token cannot be encoded and is left out; a repeated one is refused."""
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    vocabulary.pop("", None)
    if len(vocabulary) + tokens.count("") != len(tokens):
        repeated = next(token for number, token in enumerate(tokens) if token and vocabulary[token] != number)
        raise InvalidFile(f"metadata {PREFIX}tokens: {repeated!r:.80} appears twice")
    return vocabulary


def _split_merges(merges: list[str]) -> list[tuple[str, str]]:
    """ "left right"; the left part is never empty, so a merge may begin with a space that is its own."""
    pairs: list[tuple[str, ...]] = [tuple(merge.split(" ", 1)) for merge in merges]
    if set(map(len, pairs)) == {2} and all(map(itemgetter(0), pairs)):
        return cast(list[tuple[str, str]], pairs)
    middles = [merge.find(" ", 1) for merge in merges]
    if -1 in middles:
        number = middles.index(-1)
        raise InvalidFile(f"metadata {PREFIX}merges[{number}]: expected two parts, found {merges[number]!r:.80}")
    return [(merge[:middle], merge[middle + 1 :]) for merge, middle in zip(merges, middles, strict=True)]


def merges_from_scores(tokens: list[str], types: Numbers, scores: Numbers) -> list[tuple[str, str]]:
    """Every way to make a piece out of two pieces, best joined score first (sentencepiece src/bpe_model.cc).

    Only normal and user-defined pieces take part: text that happens to spell a control token must not become it.
    """
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    takes_part = ((types == NORMAL) | (types == USER_DEFINED)) & (lengths > 0) & (lengths <= MAX_SCORED_TOKEN)
    kept = np.array(tokens, object)[takes_part]
    if not len(kept):
        return []
    with guarded(f"metadata {PREFIX}tokens"):
        pieces = Pieces(kept.tolist())
    whole, left, right = pieces.splits()
    by_score = np.argsort(-scores.astype(np.float64)[takes_part], kind="stable")
    rank = np.empty(len(kept), np.int64)
    rank[by_score] = np.arange(len(kept))
    order = np.argsort(rank[whole] * len(kept) + left)
    return list(zip(kept[left[order]].tolist(), kept[right[order]].tolist(), strict=True))


def _add_tokens(backend: tokenizers.Tokenizer, tokens: list[str], types: Numbers) -> None:
    """Control and unknown tokens are matched only with ``parse_special``, user-defined ones always."""
    special, own = (
        [tokens[number] for number in _of_kind(types, *kinds)] for kinds in ((CONTROL, UNKNOWN), (USER_DEFINED,))
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special if token])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in own if token])


def _pieces(
    tokens: list[str],
    types: Numbers,
    to_bytes: Callable[[str], bytes],
    verbatim: tuple[int, ...],
    space_prefix: bool = False,
) -> PieceTable:
    """``verbatim``: the token types whose text is not spelt in the vocabulary's alphabet."""

    def lookup(token_id: int) -> bytes | None:
        if not 0 <= token_id < len(tokens):
            return None
        kind, token = types[token_id], tokens[token_id]
        if kind == BYTE:
            return byte_token(token) or token.encode()
        return token.encode() if kind in verbatim else to_bytes(token)

    return PieceTable(lookup, frozenset(_of_kind(types, CONTROL, UNKNOWN)), space_prefix)


def _sentencepiece_bytes(token: str) -> bytes:
    return token.replace(SPACE, " ").encode()


def _end_ids(fields: _Fields, tokens: list[str], types: Numbers, eos: int | None) -> tuple[int, ...]:
    """The end tokens that the file names, then the control tokens that end a turn by their text."""
    named = [eos, *(fields.token_id(name, len(tokens)) for name in ("eot_token_id", "eom_token_id"))]
    by_text = [number for number in _of_kind(types, CONTROL) if tokens[number] in END_OF_TURN]
    texts = {tokens[number] for number in by_text}
    if {"<|return|>", "<|call|>"} <= texts:  # harmony: <|end|> ends a message there, not the turn
        by_text = [number for number in by_text if tokens[number] != "<|end|>"]
    return tuple(dict.fromkeys(number for number in [*named, *by_text] if number is not None))
