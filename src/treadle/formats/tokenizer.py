"""Text to token ids and back, from a tokenizer.json or a GGUF's metadata; streaming never splits a character.

Encoding is done by the ``tokenizers`` library. Decoding is done here, on bytes: every token stands for a fixed piece
of bytes, and text is the UTF-8 decoding of the pieces put together. So decoding whole and streaming agree by
construction, whatever the ids.
"""

from __future__ import annotations

import codecs
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

from treadle.errors import InvalidRequest
from treadle.formats.gguf import Value
from treadle.formats.tokenizer_parts import TokenizerParts, guarded, uncollected

__all__ = ["DetokenizerStream", "Tokenizer"]


class Tokenizer:
    """Encodes and decodes for one model. Immutable in use and safe to share between threads.

    ``bos_id`` is None if the model has none; ``eos_ids`` are all ids that end a generation, the main one first.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._backend = parts.backend
        self._pieces = parts.pieces
        self._prefix = parts.prefix_ids
        self._suffix = parts.suffix_ids
        self._lock = threading.Lock()
        self._cache: dict[int, bytes] = {}
        self.vocab_size = parts.vocab_size
        self.bos_id = parts.bos_id
        self.eos_ids = parts.eos_ids

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """From a tokenizer.json, or a directory that holds one; the config files beside it name BOS and EOS.

        Raises ModelNotFound, InvalidFile, or UnsupportedModel for a decoder that is not known.
        """
        from treadle.formats.tokenizer_json import load_json

        with uncollected():
            return cls(load_json(Path(path)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Value]) -> Self:
        """From the ``tokenizer.ggml.*`` keys. Raises InvalidFile, or UnsupportedModel for an unknown model or pre."""
        from treadle.formats.tokenizer_gguf import load_gguf

        with uncollected():
            return cls(load_gguf(metadata))

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens: matched in the input with ``parse_special``, left out of the output with ``skip_special``."""
        return self._pieces.special

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of ``text``.

        ``add_special`` adds what the model expects around a text (BOS and the like); leave it off for a rendered chat
        template, which brings its own. With ``parse_special`` off, control tokens spelt out in the text are plain
        text. Raises InvalidRequest for text that is not Unicode (lone surrogates) or that this vocabulary can only
        encode as a control token, InvalidFile if the tokenizer's own patterns fail on it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"text: lone surrogate at character {error.start}") from None
        with self._lock, guarded("tokenizer"):
            self._backend.encode_special_tokens = not parse_special
            encoding = self._backend.encode(text, add_special_tokens=add_special)
        ids: list[int] = encoding.ids
        if not parse_special:
            self._refuse_spelt_out(text, ids, encoding.special_tokens_mask)
        return [*self._prefix, *ids, *self._suffix] if add_special else ids

    def encode_typed(
        self, text: str, second: str | None = None, limit: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Token ids and token types of a text, or of a pair, with what the model expects around them.

        `limit`: tokens in all; a longer text is cut at its end, of a pair the longer one first. Raises as `encode`, and
        InvalidRequest for a limit that leaves no room for a text.
        """
        for given in (text, second or ""):
            try:
                given.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest(f"text: lone surrogate at character {error.start}") from None
        room = None if limit is None else limit - len(self._prefix) - len(self._suffix)
        if room is not None and room <= self._backend.num_special_tokens_to_add(second is not None):
            raise InvalidRequest(f"a limit of {limit} tokens leaves no room for a text")
        with self._lock, guarded("tokenizer"):
            self._backend.encode_special_tokens = False
            if room is not None:
                self._backend.enable_truncation(room, strategy="longest_first")
            try:
                encoding = self._backend.encode(text, second)
            finally:
                self._backend.no_truncation()
        around = [0] * len(self._prefix), [encoding.type_ids[-1] if encoding.type_ids else 0] * len(self._suffix)
        return [*self._prefix, *encoding.ids, *self._suffix], [*around[0], *encoding.type_ids, *around[1]]

    def _refuse_spelt_out(self, text: str, ids: list[int], added: list[int]) -> None:
        """A Unigram vocabulary may hold its control tokens as ordinary pieces; text must not turn into them."""
        for token_id, by_template in zip(ids, added, strict=True):
            if token_id in self._pieces.special and not by_template and self.token_text(token_id) in text:
                raise InvalidRequest(f"text: {self.token_text(token_id)!r} cannot be encoded as plain text")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; empty for an id that is no token (padding rows of an embedding)."""
        piece = self._cache.get(token_id)
        if piece is None:
            piece = self._pieces.lookup(token_id)
            if piece is None:
                return b""
            self._cache[token_id] = piece
        return piece

    def token_text(self, token_id: int) -> str:
        """``token_bytes`` as text; bytes that are no whole character show as U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def decode(self, ids: Iterable[int], skip_special: bool = True, continuation: bool = False) -> str:
        """Text of ``ids``; see ``stream`` for ``continuation``. Ids that are no token give nothing."""
        stream = self.stream(skip_special, continuation)
        return "".join([*map(stream.push, ids), stream.finish()])

    def stream(self, skip_special: bool = True, continuation: bool = False) -> DetokenizerStream:
        """A new stream. ``continuation``: the ids go on from other text, so a space at the front is the text's own."""
        skipped = self._pieces.special if skip_special else frozenset()
        return DetokenizerStream(self.token_bytes, skipped, self._pieces.space_prefix and not continuation)


class DetokenizerStream:
    """Turns ids into text as they come. All that ``push`` and ``finish`` return, joined, is what ``decode`` returns."""

    def __init__(self, piece_of: Callable[[int], bytes], skipped: frozenset[int], strip_space: bool) -> None:
        self._piece_of = piece_of
        self._skipped = skipped
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Text that is complete now; the bytes of an unfinished character are held back."""
        if token_id in self._skipped:
            return ""
        piece = self._piece_of(token_id)
        if self._strip_space and piece:
            self._strip_space = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)
