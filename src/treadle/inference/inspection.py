"""Inspection: what every instruction of a plan computes, on any backend.

A plan's outputs may be any of its registers. So the values between are had by compiling nothing anew: the same
instructions with their registers as outputs too. Liveness then keeps the registers apart, and a backend's lowering,
which fuses only what nobody else reads, fuses nothing. A plan that is not inspected costs nothing.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.inference.core import Runner
from treadle.inference.sampling import Sampling
from treadle.plan.context import ExecutionContext
from treadle.plan.ir import NO_REGISTER, NO_WEIGHT, CompiledPlan, Container, ModelPlans, Stage
from treadle.plan.liveness import analyse
from treadle.plan.views import StepLimits

F32 = NDArray[np.float32]
PIECE: Final = 200
"""Instructions inspected in one go: a plan has at most 256 outputs."""


class InstructionInfo(msgspec.Struct, frozen=True):
    """One instruction. `tensors`: of its weights, as a Hugging Face checkpoint names them;
    `reads`: the instructions that wrote its inputs, in order, -1 for what the caller wrote."""

    index: int
    op: str
    tensors: tuple[str, ...]
    reads: tuple[int, ...]

    def __str__(self) -> str:
        of = f" of {', '.join(self.tensors)}" if self.tensors else f" behind {max(self.reads)}"
        return f"instruction {self.index}, {self.op}{of}"


def instructions(plans: ModelPlans) -> tuple[InstructionInfo, ...]:
    """What the instructions of a model's first program are."""
    compiled = plans.stages()[0]
    writers = {instruction.outputs[0]: i for i, instruction in enumerate(compiled.plan.instructions)}
    found = []
    for i, instruction in enumerate(compiled.plan.instructions):
        bindings = [compiled.weight_bindings[w] for w in instruction.weights if w != NO_WEIGHT]
        sources = [s for b in bindings for s in b.sources if s.container is Container.SAFETENSORS]
        tensors = dict.fromkeys(tensor for source in sources for tensor in source.tensors)
        reads = tuple(writers.get(r, -1) for r in instruction.inputs if r != NO_REGISTER)
        found.append(InstructionInfo(i, instruction.opcode.name.lower(), tuple(tensors), reads))
    return tuple(found)


class Inspector:
    """Stands between the loop and the programs, and keeps what the instructions from `first` on write, PIECE of them.

    For one sequence at a time: the rows of its steps are put behind one another.
    """

    def __init__(self, first: int = 0) -> None:
        self._piece = slice(first, first + PIECE)
        self._columns: dict[Stage, dict[int, int]] = {}
        self._parts: dict[int, list[F32]] = {}

    def expose(self, plans: ModelPlans) -> ModelPlans:
        """The plans with this piece's registers as outputs too, behind their own."""
        changed = {p.stage.name.lower(): self._exposed(p) for p in plans.stages()}
        return msgspec.structs.replace(plans, **changed)

    def _exposed(self, compiled: CompiledPlan) -> CompiledPlan:
        written = {i: op.outputs[0] for i, op in list(enumerate(compiled.plan.instructions))[self._piece]}
        outputs = tuple(dict.fromkeys((*compiled.plan.outputs, *written.values())))
        self._columns[compiled.stage] = {i: outputs.index(register) for i, register in written.items()}
        plan = msgspec.structs.replace(compiled.plan, outputs=outputs)
        liveness, peak = analyse(plan)
        return msgspec.structs.replace(compiled, plan=plan, liveness=liveness, peak_registers=peak)

    def around(self, runner: Runner) -> Runner:
        """A runner that shows the inspector what it computed, and the loop what it expects."""
        return _Shown(runner, self)

    def take(self, stage: Stage, outputs: tuple[F32, ...]) -> None:
        for i, column in self._columns[stage].items():
            self._parts.setdefault(i, []).append(outputs[column].copy())

    def values(self) -> dict[int, F32]:
        """What each instruction wrote, f32 [rows, ...]."""
        return {i: np.concatenate(parts) for i, parts in self._parts.items()}


class _Shown:
    def __init__(self, runner: Runner, inspector: Inspector) -> None:
        self._runner = runner
        self._inspector = inspector

    @property
    def limits(self) -> StepLimits:
        return self._runner.limits

    def run(self, context: ExecutionContext, sampling: Sampling | None = None) -> tuple[F32, ...]:
        outputs = self._runner.run(context, sampling)
        self._inspector.take(context.mode, outputs)
        return outputs[:1]

    def cancel(self) -> None:
        self._runner.cancel()
