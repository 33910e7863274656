"""What a step chooses from the rows whose logits it computes: one record a row goes in, columns come out.

A request's token depends on its logits, parameters, seed, index and position alone. How it is chosen is defined by
`compute.reference.sampling`. Record and order of edits are mirrored in native/contract/sampling.hpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidParamBlockABI
from treadle.inference.edits import RowEdits
from treadle.inference.request import MAX_LOGPROBS, Request
from treadle.inference.scheduler import Scheduled
from treadle.plan.views import StepLimits

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

SAMPLED_ROW: Final = np.dtype(
    [
        ("top_p", "<f8"),
        ("seed", "<u8"),
        ("stream", "<u8"),
        ("position", "<u8"),
        ("temperature", "<f4"),
        ("min_p", "<f4"),
        ("repetition_penalty", "<f4"),
        ("frequency_penalty", "<f4"),
        ("presence_penalty", "<f4"),
        ("top_k", "<i4"),
        ("logprobs", "<i4"),
        ("chooses", "<i4"),
    ]
)
"""temperature 0: the largest logit. top_k 0: all. logprobs under 0: none. chooses 0: the host reads the row itself."""

_U64: Final = 0xFFFF_FFFF_FFFF_FFFF
_MOST_I32: Final = 2**31 - 1


@dataclass(slots=True)
class Sampling:
    """What is asked of a step's sampled rows, and where the answers are put."""

    rows: NDArray[Any]
    """[sampled] of SAMPLED_ROW."""
    edits: list[RowEdits]
    """Ascending by row; rows that are not in it are taken as they are."""
    chosen: I32
    """[sampled] columns."""
    best: F32
    """[sampled] the largest logit, or the first NaN. Where it is not finite `chosen` is its column."""
    listed_ids: I32
    """[sampled, 1 + MAX_LOGPROBS] the chosen column, then the `logprobs` most probable ones."""
    listed_ranks: I32
    listed_logprobs: F64
    """Natural logs, of the unedited logits."""

    def arrays(self) -> tuple[Any, ...]:
        """As the native core takes it."""
        rows = self.rows.view(np.uint8).reshape(len(self.rows), SAMPLED_ROW.itemsize)
        listed = (self.listed_ids, self.listed_ranks, self.listed_logprobs)
        return (rows, self.edits, self.chosen, self.best, *listed)


class SamplingArrays:
    """The arrays of the largest step; `fill` returns a Sampling over their fronts, good until the next `fill`."""

    def __init__(self, limits: StepLimits) -> None:
        self._of_slot = np.zeros(limits.max_batch, SAMPLED_ROW)
        self._owner = [-1] * limits.max_batch
        """Id of the request whose record is in a slot."""
        count = limits.max_sampled
        self._rows = np.zeros(count, SAMPLED_ROW)
        self._chosen = np.zeros(count, np.int32)
        self._best = np.zeros(count, np.float32)
        self._ids = np.zeros((count, 1 + MAX_LOGPROBS), np.int32)
        self._ranks = np.zeros((count, 1 + MAX_LOGPROBS), np.int32)
        self._logprobs = np.zeros((count, 1 + MAX_LOGPROBS), np.float64)

    def fill(self, step: Sequence[Scheduled]) -> Sampling:
        """Rows in the order of `step`."""
        slots: list[int] = []
        positions: list[int] = []
        edits: list[RowEdits] = []
        for request, _, sampled in step:
            if not sampled:
                continue
            slot, position = request.slot, request.output_length
            if self._owner[slot] != request.id:
                self._owner[slot] = request.id
                self._of_slot[slot] = _record(request)
            if request.edits is not None:
                edit = request.edits.of(len(slots), position)
                if edit is not None:
                    edits.append(edit)
            slots += [slot] * sampled
            positions += [position] * sampled
        n = len(slots)
        rows = self._rows[:n]
        self._of_slot.take(slots, out=rows, mode="clip")
        rows["position"] = positions
        return Sampling(
            rows, edits, self._chosen[:n], self._best[:n], self._ids[:n], self._ranks[:n], self._logprobs[:n]
        )


def check_record(fields: Mapping[str, int], nbytes: int) -> None:
    """Refuses a native core whose record differs: `fields` are its offsets. Raises InvalidParamBlockABI."""
    ours = {name: offset for name, (_, offset, *_) in (SAMPLED_ROW.fields or {}).items()}
    if dict(fields) != ours or nbytes != SAMPLED_ROW.itemsize:
        raise InvalidParamBlockABI(f"sampled row: native core has {fields}, expected {ours}; rebuild the package")


def _record(request: Request) -> tuple[float | int, ...]:
    params = request.params
    return (
        params.top_p,
        request.seed & _U64,
        request.index,
        0,
        0.0 if params.greedy else params.temperature,
        params.min_p,
        params.repetition_penalty,
        params.frequency_penalty,
        params.presence_penalty,
        min(max(params.top_k, 0), _MOST_I32),
        -1 if params.logprobs is None else params.logprobs,
        request.sink is None,
    )
