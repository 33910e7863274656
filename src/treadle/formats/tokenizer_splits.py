"""Which pieces of a vocabulary are two other pieces joined: all at once, for vocabularies of 262144 pieces."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from treadle.errors import UnsupportedModel

__all__ = ["Pieces"]

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
BASE: Final = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64."""
MIX: Final = np.uint64(0xD6E8FEB86659FD93)
"""Odd: sums stay apart when they are multiplied by it, and their highest bits become even."""
MODULUS: Final = 1 << 64
CHARACTER_BITS: Final = 21
IN_WORD: Final = 3
"""Characters of a word, in which stretches are compared."""
MASKS: Final = np.array([(1 << CHARACTER_BITS * count) - 1 for count in range(IN_WORD + 1)], np.uint64)
_NONE: Final = np.empty(0, np.int64)


class Table:
    """Pieces by their sums, mixed, in ascending order; their highest bits say in which short stretch of it to look."""

    def __init__(self, sums: U64) -> None:
        bits = len(sums).bit_length() + 1
        mixed = sums * MIX
        order = np.argsort(mixed)
        self._shift = np.uint64(64 - bits)
        counts = np.bincount((mixed >> self._shift).view(np.int64), minlength=1 << bits)
        self._begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self._steps = int(counts.max()).bit_length()
        self._mixed = np.append(mixed[order], np.uint64(MODULUS - 1))  # what is searched ends at the latest here
        self._pieces = np.append(order, -1)

    def find(self, sums: U64) -> I64:
        """The piece of each sum, or -1."""
        mixed = sums * MIX
        place = (mixed >> self._shift).view(np.int64)
        at = self._begins[place]
        more = np.flatnonzero(self._mixed[at] < mixed)  # few: most stretches hold one sum or none
        low, high, wanted = at[more] + 1, self._begins[place[more] + 1], mixed[more]
        for _ in range(self._steps):
            middle = (low + high) >> 1
            below = self._mixed[middle] < wanted
            low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        at[more] = low
        return np.where(self._mixed[at] == mixed, self._pieces[at], -1)

    def twins(self) -> tuple[int, int] | None:
        """Two pieces of one sum, if there are any."""
        same = np.flatnonzero(self._mixed[1:-1] == self._mixed[:-2])
        return (int(self._pieces[same[0]]), int(self._pieces[same[0] + 1])) if len(same) else None


class Pieces:
    """Distinct, not empty pieces. A stretch of characters c_0 .. c_n is looked up by sum (c_i + 1) BASE^i mod 2^64, and
    what is found is compared character by character. Raises UnsupportedModel for two pieces of one sum."""

    def __init__(self, pieces: list[str]) -> None:
        self._lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        self._ends = np.cumsum(self._lengths)
        self._starts = self._ends - self._lengths
        self._longest = int(self._lengths.max())
        encoded = "".join(pieces).encode("utf-32-le", "surrogatepass")
        text = np.frombuffer(encoded, np.uint32)
        self._words = _words(text)
        place = np.arange(len(text), dtype=np.int32)
        place -= np.repeat(self._starts.astype(np.int32), self._lengths)
        terms = _powers(BASE, self._longest)[place]
        terms *= text + np.uint32(1)
        self._sums = np.zeros(len(text) + 1, np.uint64)
        np.cumsum(terms, out=self._sums[1:])
        self._inverse = _powers(pow(BASE, -1, MODULUS), self._longest)
        self._table = Table(self._sums[self._ends] - self._sums[self._starts])
        if twins := self._table.twins():
            a, b = (pieces[number] for number in twins)
            raise UnsupportedModel(f"the pieces {a!r:.80} and {b!r:.80} cannot be told apart")

    def splits(self) -> tuple[I64, I64, I64]:
        """(whole, left, right) for every way to cut a piece into two pieces, in no order. On two threads: NumPy's own
        loops run beside one another."""
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(self._cut_at, range(1, self._longest)))
        whole, left, right = (np.concatenate([part[i] for part in found] or [_NONE]) for i in range(3))
        return whole, left, right

    def _cut_at(self, cut: int) -> tuple[I64, I64, I64]:
        """Pieces whose first `cut` characters are a piece, and the rest too."""
        whole = np.flatnonzero(self._lengths > cut)
        starts = self._starts[whole]
        left = self._table.find(self._sums[starts + cut] - self._sums[starts])
        hit = self._equal(left, starts, np.full(len(whole), cut))
        whole, middle, left = whole[hit], starts[hit] + cut, left[hit]
        right = self._table.find((self._sums[self._ends[whole]] - self._sums[middle]) * self._inverse[cut])
        hit = self._equal(right, middle, self._lengths[whole] - cut)
        return whole[hit], left[hit], right[hit]

    def _equal(self, piece: I64, start: I64, length: I64) -> I64:
        """Where each piece, if it is none of -1, is the `length` characters from `start`."""
        some = np.flatnonzero((piece >= 0) & (self._lengths[piece] == length))
        like = np.ones(len(some), bool)
        own, other, left, index = self._starts[piece[some]], start[some], length[some], np.arange(len(some))
        while len(index):
            unlike = (self._words[own] ^ self._words[other]) & MASKS[np.minimum(left, IN_WORD)]
            like[index[unlike != 0]] = False
            longer = left > IN_WORD
            own, other, left = own[longer] + IN_WORD, other[longer] + IN_WORD, left[longer] - IN_WORD
            index = index[longer]
        return some[like]


def _words(text: NDArray[np.uint32]) -> U64:
    """At each character, and once behind the last: it and those after it, as far as they fit."""
    words = np.zeros(len(text) + 1, np.uint64)
    for i in reversed(range(IN_WORD)):
        words <<= np.uint64(CHARACTER_BITS)
        words[: max(0, len(text) - i)] |= text[i:]
    return words


def _powers(base: int, longest: int) -> U64:
    """base^0 .. base^longest."""
    powers = [1]
    for _ in range(longest):
        powers.append(powers[-1] * base % MODULUS)
    return np.array(powers, np.uint64)
