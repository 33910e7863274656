"""Which pieces of a vocabulary are two other pieces joined: all at once, for vocabularies of 262144 pieces."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from treadle.errors import UnsupportedModel

__all__ = ["Pieces"]

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
BASE: Final = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64."""
MODULUS: Final = 1 << 64


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
        found = self._sums[self._ends] - self._sums[self._starts]
        self._order = np.argsort(found)
        self._sorted = found[self._order]
        same = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if len(same):
            a, b = (pieces[self._order[same[0] + i]] for i in (0, 1))
            raise UnsupportedModel(f"the pieces {a!r:.80} and {b!r:.80} cannot be told apart")

    def splits(self) -> tuple[I64, I64, I64]:
        """(whole, left, right) for every way to cut a piece into two pieces, by whole and then length of left."""
        whole = np.repeat(np.arange(len(self._lengths)), self._lengths - 1)
        first = np.cumsum(self._lengths - 1) - (self._lengths - 1)
        cut = np.arange(len(whole)) - first[whole] + 1  # characters of the left part
        middle = self._starts[whole] + cut
        left = self._find(self._sums[middle] - self._sums[self._starts[whole]])
        hit = left >= 0
        whole, cut, middle, left = whole[hit], cut[hit], middle[hit], left[hit]
        right = self._find((self._sums[self._ends[whole]] - self._sums[middle]) * self._inverse[cut])
        hit = right >= 0
        whole, cut, middle, left, right = whole[hit], cut[hit], middle[hit], left[hit], right[hit]
        hit = self._equal(left, self._starts[whole], cut)
        hit &= self._equal(right, middle, self._lengths[whole] - cut)
        return whole[hit], left[hit], right[hit]

    def _find(self, sums: U64) -> I64:
        """The piece of each sum, or -1."""
        at = np.searchsorted(self._sorted, sums)
        at[at == len(self._sorted)] = 0
        return np.where(self._sorted[at] == sums, self._order[at], -1)

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
