"""Small vocabularies whose tokens run across every word boundary, so that a wrong split changes the ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from treadle.formats.byte_level import BYTE_OF_CHARACTER

CHARACTER_OF_BYTE = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}


def span_vocabulary(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE: all bytes, and every run of 2 and of 4 bytes that occurs in ``texts``.

    Merges are in order of first appearance, the pairs before the fours.
    """
    spelt = ["".join(CHARACTER_OF_BYTE[byte] for byte in text.encode()) for text in texts]
    pairs = list(dict.fromkeys(run for text in spelt for run in _runs(text, 2)))
    fours = list(dict.fromkeys(run for text in spelt for run in _runs(text, 4)))
    merges = [f"{run[:1]} {run[1:]}" for run in pairs] + [f"{run[:2]} {run[2:]}" for run in fours]
    return [*sorted(BYTE_OF_CHARACTER), *pairs, *fours], merges


def _runs(text: str, length: int) -> Iterator[str]:
    return (text[at : at + length] for at in range(len(text) - length + 1))
