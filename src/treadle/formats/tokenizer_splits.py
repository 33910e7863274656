"""Which pieces of a vocabulary are two other pieces joined: all at once, for vocabularies of 262144 pieces."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from treadle.errors import UnsupportedModel

__all__ = ["Pieces"]

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
BASE: Final = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64."""
MODULUS: Final = 1 << 64
_NONE: Final = np.empty(0, np.int64)


class Table(NamedTuple):
    """Sums in ascending order, and the piece of each."""

    sums: U64
    pieces: I64

    def find(self, sums: U64) -> I64:
        """The piece of each sum, or -1."""
        at = np.searchsorted(self.sums, sums)
        at[at == len(self.sums)] = 0
        return np.where(self.sums[at] == sums, self.pieces[at], -1)


class Pieces:
    """Distinct, not empty pieces. A stretch of characters c_0 .. c_n is looked up by sum (c_i + 1) BASE^i mod 2^64, and
    what is found is compared character by character. Raises UnsupportedModel for two pieces of one sum."""

    def __init__(self, pieces: list[str]) -> None:
        self._lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        self._ends = np.cumsum(self._lengths)
        self._starts = self._ends - self._lengths
        text = "".join(pieces).encode("utf-32-le", "surrogatepass")
        self._text = np.frombuffer(text, np.uint32)
        place = np.arange(len(self._text)) - np.repeat(self._starts, self._lengths)
        longest = int(self._lengths.max())
        powers = _powers(BASE, longest)
        terms = (self._text + np.uint64(1)) * powers[place]
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        self._inverse = _powers(pow(BASE, -1, MODULUS), longest)
        whole = self._sums[self._ends] - self._sums[self._starts]
        order = np.argsort(whole)
        self._all = Table(whole[order], order)
        same = np.flatnonzero(self._all.sums[1:] == self._all.sums[:-1])
        if len(same):
            a, b = (pieces[order[same[0] + i]] for i in (0, 1))
            raise UnsupportedModel(f"the pieces {a!r:.80} and {b!r:.80} cannot be told apart")
        lengths = self._lengths[order]
        by_length = np.argsort(lengths, kind="stable")
        ends = np.searchsorted(lengths[by_length], np.arange(longest + 1), side="right").tolist()
        parts = [by_length[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        self._of_length = [Table(self._all.sums[part], order[part]) for part in parts]
        """Where a stretch of that length is looked for: smaller tables, that stay in cache."""

    def splits(self) -> tuple[I64, I64, I64]:
        """(whole, left, right) for every way to cut a piece into two pieces, in no order."""
        found = [self._cut_at(cut) for cut in range(1, len(self._of_length)) if len(self._of_length[cut].pieces)]
        whole, left, right = (np.concatenate([part[i] for part in found] or [_NONE]) for i in range(3))
        return whole, left, right

    def _cut_at(self, cut: int) -> tuple[I64, I64, I64]:
        """Pieces whose first `cut` characters are a piece, and the rest too."""
        whole = np.flatnonzero(self._lengths > cut)
        middle = self._starts[whole] + cut
        left = self._of_length[cut].find(self._sums[middle] - self._sums[self._starts[whole]])
        hit = left >= 0
        whole, middle, left = whole[hit], middle[hit], left[hit]
        right = self._all.find((self._sums[self._ends[whole]] - self._sums[middle]) * self._inverse[cut])
        hit = right >= 0
        whole, middle, left, right = whole[hit], middle[hit], left[hit], right[hit]
        hit = self._equal(left, self._starts[whole], np.full(len(whole), cut))
        hit &= self._equal(right, middle, self._lengths[whole] - cut)
        return whole[hit], left[hit], right[hit]

    def _equal(self, piece: I64, start: I64, length: I64) -> NDArray[np.bool_]:
        """Whether each piece is the `length` characters from `start`."""
        same: NDArray[np.bool_] = self._lengths[piece] == length
        for i in range(int(length.max(initial=0))):
            inside = np.flatnonzero(same & (length > i))
            same[inside] = self._text[self._starts[piece[inside]] + i] == self._text[start[inside] + i]
        return same


def _powers(base: int, longest: int) -> U64:
    """base^0 .. base^longest."""
    powers = [1]
    for _ in range(longest):
        powers.append(powers[-1] * base % MODULUS)
    return np.array(powers, np.uint64)
