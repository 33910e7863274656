"""What the two tokenizer readers hand over, and the guard around the library that builds it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tokenizers

from treadle.errors import InvalidFile

__all__ = ["PieceTable", "TokenizerParts", "guarded", "uncollected"]


@dataclass(frozen=True)
class PieceTable:
    """Token id -> the bytes it stands for.

    ``lookup`` gives None for an id that is no token. ``special`` ids are left out of decoded text on request.
    ``space_prefix``: the encoder puts a space before a text, so decoding takes one off the front.
    """

    lookup: Callable[[int], bytes | None]
    special: frozenset[int]
    space_prefix: bool = False


@dataclass(frozen=True)
class TokenizerParts:
    """``prefix_ids`` and ``suffix_ids`` go around an encoded text, beside what ``backend`` itself adds."""

    backend: tokenizers.Tokenizer
    pieces: PieceTable
    vocab_size: int
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()


@contextmanager
def uncollected() -> Iterator[None]:
    """Holds the garbage collector off: tables of strings make no cycles, and it would go through them many times."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def guarded(field: str) -> Iterator[None]:
    """Turn whatever the tokenizers library raises on bad input into InvalidFile, its panics included.

    A panic of the Rust code arrives as PanicException, which derives from BaseException and cannot be imported.
    """
    try:
        yield
    except InvalidFile:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise InvalidFile(f"{field}: {str(error)[:200]}") from None
        raise
