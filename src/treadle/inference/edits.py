"""Changes to a request's logits before a token is chosen: bias, end tokens held off, penalties of what was seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

_NO_IDS: Final = np.empty(0, np.int32)
_NO_VALUES: Final = np.empty(0, np.float32)


class RowEdits(NamedTuple):
    """What is done to a copy of sampled row `row`, in this order."""

    row: int
    bias_ids: I32
    bias: F32
    """Added."""
    forbidden: I32
    """Set to -inf."""
    seen: I32
    """Penalised as the row's record says, by how often each was generated:"""
    counts: F32


class SeenTokens:
    """Distinct tokens of a growing sequence, and how often each was generated: O(1) to add to, O(distinct) to use."""

    __slots__ = ("_counts", "_ids", "_place", "_size")

    def __init__(self, prompt: Iterable[int]) -> None:
        ids = np.fromiter(dict.fromkeys(prompt), np.int32)
        self._size = len(ids)
        self._place = {int(token): i for i, token in enumerate(ids)}
        self._ids = np.concatenate([ids, np.zeros(64, np.int32)])
        self._counts = np.zeros(len(self._ids), np.float32)

    def add(self, token: int) -> None:
        """Counts a generated token."""
        place = self._place.setdefault(token, self._size)
        if place == self._size:
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[place] = token
            self._size += 1
        self._counts[place] += 1

    @property
    def ids(self) -> I32:
        return self._ids[: self._size]

    @property
    def counts(self) -> F32:
        return self._counts[: self._size]


class LogitEdits:
    """The edits of one request. `seen` is None where nothing is penalised."""

    __slots__ = ("_bias", "_bias_ids", "_forbidden", "_min_tokens", "seen")

    def __init__(
        self, bias: Mapping[int, float], forbidden: Iterable[int], min_tokens: int, seen: SeenTokens | None
    ) -> None:
        """`forbidden`: tokens that may not come before `min_tokens` are out."""
        self._bias_ids = np.fromiter(bias.keys(), np.int32)
        self._bias = np.fromiter(bias.values(), np.float32)
        self._forbidden = np.array(sorted(forbidden), np.int32)
        self._min_tokens = min_tokens
        self.seen = seen

    def of(self, row: int, output_length: int) -> RowEdits | None:
        """The edits of a row from which output token number `output_length` (from 0) is chosen; None for none."""
        forbidden = self._forbidden if output_length < self._min_tokens else _NO_IDS
        if self.seen is not None:
            return RowEdits(row, self._bias_ids, self._bias, forbidden, self.seen.ids, self.seen.counts)
        if len(forbidden) or len(self._bias):
            return RowEdits(row, self._bias_ids, self._bias, forbidden, _NO_IDS, _NO_VALUES)
        return None
