"""What a backend is to the executor: sizes before anything is allocated, packing, and linking into a bound program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from treadle.inference.sampling import Sampling
from treadle.plan.adapters import AdapterTable
from treadle.plan.context import ExecutionContext
from treadle.plan.ir import CompiledPlan, DType, RegisterSpec, WeightBinding
from treadle.plan.views import PhysicalMapping, StateBlockHandle, StepLimits, TensorView

Bytes = NDArray[np.uint8]
F32 = NDArray[np.float32]

Numerics = Literal["fast", "bf16", "exact"]
"""How matrices are multiplied. fast: int8 activations on quantised weights, bf16 ones on bf16 weights. bf16: bf16
activations on weights rounded to bf16. exact: f32 activations on dequantised values."""


@dataclass(frozen=True, slots=True)
class LinkRequest:
    """Everything a program is bound to, once. All memory belongs to the executor."""

    compiled: CompiledPlan
    limits: StepLimits
    mapping: PhysicalMapping
    registers: tuple[Bytes, ...]
    """One buffer per physical register of `mapping`."""
    dtypes: Mapping[int, DType]
    """Stored dtype of each weight binding, by index."""
    weights: tuple[Bytes, ...]
    """The backend's packed copy of each weight binding, by index."""
    states: Mapping[int, StateBlockHandle]
    """Arena of each state descriptor, by id."""
    workspace: Bytes


class BoundProgram(Protocol):
    """A plan with every operand resolved."""

    @property
    def covers(self) -> tuple[range, ...]:
        """The plan's instructions that each of its ops stands for, in order."""
        ...

    def run(self, context: ExecutionContext, sampling: Sampling | None = None) -> tuple[F32, ...]:
        """One step. Returns the plan's outputs, views that hold until the next run; fills in the answers of `sampling`.

        With a sampling in which every row only wants its largest value the outputs may be left unwritten.
        Raises Cancelled after `cancel`; state of the step's rows is then undefined, all else untouched.
        """
        ...

    def cancel(self) -> None:
        """From another thread: the step that is running ends soon. Without one, nothing happens."""
        ...


class Backend(Protocol):
    """One way to run plans. Sizes are exact and in bytes, multiples of 64."""

    @property
    def name(self) -> str: ...

    @property
    def table(self) -> AdapterTable[Any]: ...

    def weight_bytes(self, binding: WeightBinding, dtype: DType) -> int:
        """Size of this backend's copy of a weight that is stored as `dtype`."""
        ...

    def register_bytes(self, spec: RegisterSpec, limits: StepLimits) -> int: ...

    def workspace_bytes(self, compiled: CompiledPlan, dtypes: Mapping[int, DType], limits: StepLimits) -> int: ...

    def pack(self, binding: WeightBinding, view: TensorView, out: Bytes) -> None:
        """Fills `out`, `weight_bytes` long and zeroed, from the weight as stored."""
        ...

    def packing(self, dtypes: Iterable[DType]) -> str | None:
        """Names the bytes that `pack` makes of stored dtypes: equal names, equal bytes. None: not to be kept."""
        ...

    def checksum(self, data: Bytes) -> int:
        """64 bits that tell accidental damage of packed bytes, at memory speed."""
        ...

    def link(self, request: LinkRequest) -> BoundProgram: ...

    def kernels(self) -> str:
        """Hex SHA-256 of the code that computes: equal hashes, equal bits."""
        ...

    def describe(self) -> Mapping[str, str | int]:
        """What a user may want to know: isa, threads, numerics, ..."""
        ...
