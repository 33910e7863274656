"""Where the logits of a prompt's own positions go, for requests that generate nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class LogitSink(Protocol):
    """`first`: the first position whose logits are wanted."""

    first: int

    def take(self, begin: int, rows: F32) -> None:
        """Logits [n, vocab] of the positions from `begin` on; the memory is the step's and will be written again."""
        ...


class AllLogits:
    """Keeps them all, f32 [positions, vocab]."""

    def __init__(self, positions: int, vocab_size: int) -> None:
        self.first = 0
        self.values = np.empty((positions, vocab_size), np.float32)

    def take(self, begin: int, rows: F32) -> None:
        self.values[begin : begin + len(rows)] = rows


class NextTokenScores:
    """Keeps one figure a position: `logprobs` f64 [len(tokens) - 1 - first], the natural log of the probability that
    the model gives each token behind position `first`, from the unprocessed logits."""

    def __init__(self, tokens: Sequence[int], first: int) -> None:
        self.first = first
        self.logprobs = np.zeros(len(tokens) - 1 - first)
        self._tokens = np.asarray(tokens)

    def take(self, begin: int, rows: F32) -> None:
        followed = rows[: len(self._tokens) - 1 - begin]  # nothing follows the last position
        wanted = self._tokens[begin + 1 : begin + 1 + len(followed)]
        largest = followed.max(axis=1, keepdims=True)
        total = np.exp(followed - largest).sum(axis=1, dtype=np.float64)
        chosen = np.take_along_axis(followed, wanted[:, None], axis=1)
        at = begin - self.first
        self.logprobs[at : at + len(followed)] = (chosen - largest)[:, 0] - np.log(total)
