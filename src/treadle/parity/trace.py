"""Where two implementations part: the values of every instruction beside those of transformers' modules.

An instruction's weights carry the names that a Hugging Face checkpoint gives them, and these name the module: what
`model.layers.3.self_attn.o_proj.weight` and its neighbours share is `model.layers.3.self_attn`. An instruction's value
is then that module's output; where it has no weights or no such module, it is the input of the module of one that
reads it. Some modules hold more than their instruction (BERT's attention adds the residual): such a point differs
while all that reads it agrees, and does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.inference.inspection import PIECE, Inspector, InstructionInfo, instructions
from treadle.inference.llm import LLM
from treadle.parity.compare import relative_error
from treadle.parity.outputs import outputs

F32 = NDArray[np.float32]


class Inspected(NamedTuple):
    """A run of one prompt: its instructions, and what each wrote, f32 [rows, ...]."""

    infos: tuple[InstructionInfo, ...]
    values: Mapping[int, F32]


class TracePoint(msgspec.Struct, frozen=True):
    """An instruction whose value was compared. `at`: the module and its side, as in "model.norm output"."""

    index: int
    op: str
    tensors: tuple[str, ...]
    at: str
    rel_err: float


class Divergence(NamedTuple):
    """`first`: the instruction where values part; `points`: all that were compared, in order."""

    first: InstructionInfo | None
    points: tuple[TracePoint, ...]

    def __str__(self) -> str:
        if self.first is None:
            return "no instruction differs beyond the tolerance"
        before = [point.index for point in self.points if point.index < self.first.index]
        found = next(point for point in self.points if point.index == self.first.index)
        skipped = self.first.index - 1 - max(before, default=-1)
        unseen = f" (or one of the {skipped} before it, which have no point of their own)" if skipped else ""
        return f"first at {self.first}{unseen}: {found.at}, relative error {found.rel_err:.1e}"


def inspect(path: Path, options: Mapping[str, Any], ids: list[int], chunk: int | None = None) -> Inspected:
    """Runs a prompt alone. Raises what LLM raises."""
    values: dict[int, F32] = {}
    infos: tuple[InstructionInfo, ...] = ()
    first = 0
    while not infos or first < len(infos):
        inspector = Inspector(first)
        with LLM(path, **options, inspector=inspector) as llm:
            infos = instructions(llm.plans)
            outputs(llm, [ids], chunk)
        values |= inspector.values()
        first += PIECE
    return Inspected(infos, values)


def against_oracle(run: Inspected, oracle: Any, model: Any, ids: list[int], tolerance: float) -> Divergence:
    """Compares with transformers' modules on the same prompt."""
    wanted = points(run.infos, oracle.module_names(model))
    expected = oracle.trace(model, ids, sorted(set(wanted.values())))
    compared = [
        TracePoint(info.index, info.op, info.tensors, " ".join(wanted[info.index]), error)
        for info in run.infos
        if info.index in wanted
        and (error := _error(run.values[info.index], expected.get(wanted[info.index]))) is not None
    ]
    return first_divergence(run.infos, compared, tolerance)


def between_ways(run: Inspected, other: Inspected) -> Divergence:
    """Compares two runs of one prompt bit by bit."""
    compared = []
    for info in run.infos:
        a, b = run.values[info.index], other.values[info.index]
        error = 0.0 if np.array_equal(a, b) else max(relative_error([b], [a]), 1e-30)
        compared.append(TracePoint(info.index, info.op, info.tensors, "bits", error))
    return first_divergence(run.infos, compared, 0.0)


def points(infos: Sequence[InstructionInfo], modules: frozenset[str]) -> dict[int, tuple[str, str]]:
    """Instruction -> (module, "output" or "input") where transformers holds its value; "" is the model, its logits."""
    found = {info.index: (module, "output") for info in infos if (module := module_of(info, modules)) is not None}
    for info in infos:
        for read in info.reads[:1]:
            if read >= 0 and read not in found and info.index in found:
                found[read] = (found[info.index][0], "input")
    found[infos[-1].index] = ("", "output")
    return found


def module_of(info: InstructionInfo, modules: frozenset[str]) -> str | None:
    """What the names of the instruction's tensors share, where that is a module."""
    owners = [tensor.split(".")[:-1] for tensor in info.tensors]
    if not owners:
        return None
    shared = owners[0]
    for owner in owners[1:]:
        same = [a == b for a, b in zip(shared, owner, strict=False)]
        shared = shared[: same.index(False) if False in same else len(same)]
    name = ".".join(shared)
    return name if name and name in modules else None


def first_divergence(infos: Sequence[InstructionInfo], compared: Sequence[TracePoint], tolerance: float) -> Divergence:
    """The first instruction whose value differs, unless all that follows from it agrees."""
    agrees = {point.index: point.rel_err <= tolerance for point in compared}
    readers: dict[int, list[int]] = {info.index: [] for info in infos}
    sound: dict[int, bool] = {}
    for info in reversed(infos):
        follow = readers[info.index]
        sound[info.index] = agrees.get(info.index, False) or (bool(follow) and all(sound[i] for i in follow))
        for read in info.reads:
            if read >= 0:
                readers[read].append(info.index)
    for info in infos:
        if not agrees.get(info.index, True) and not sound[info.index]:
            return Divergence(info, tuple(compared))
    return Divergence(None, tuple(compared))


def _error(found: F32, expected: F32 | None) -> float | None:
    """None where the module's value is not of this size."""
    if expected is None or found.size != expected.size or not np.abs(expected).max() > 0:
        return None
    return relative_error([found.reshape(-1)], [expected.reshape(-1)])
