"""What the reference backend's adapters take: an instruction with its operands resolved, and a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from treadle.compute import reference as ops
from treadle.errors import InvalidBatchSize
from treadle.inference.backends.base import F32, Bytes
from treadle.plan.context import ExecutionContext
from treadle.plan.ir import DType, Opcode, RegisterSpec
from treadle.plan.param_struct import Params
from treadle.plan.params import Activation
from treadle.plan.views import StateBlockHandle

Array = NDArray[np.generic]
I32 = NDArray[np.int32]

NUMPY: Final[Mapping[DType, np.dtype[np.generic]]] = {
    DType.F32: np.dtype(np.float32),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.I32: np.dtype(np.int32),
}
ACTIVATIONS: Final[Mapping[int, Callable[[F32], F32]]] = {
    Activation.SILU: ops.silu,
    Activation.GELU: ops.gelu,
    Activation.GELU_TANH: ops.gelu_tanh,
    Activation.RELU: ops.relu,
    Activation.RELU2: ops.relu2,
    Activation.TANH: ops.tanh,
    Activation.SIGMOID: ops.sigmoid,
    Activation.IDENTITY: ops.identity,
}


@dataclass(frozen=True, slots=True)
class Register:
    """A logical register in its physical buffer."""

    buffer: Bytes
    spec: RegisterSpec

    def view(self, sizes: Mapping[int, int]) -> Array:
        """The register's array at the sizes of a step."""
        shape = tuple(sizes[n] if n < 0 else n for n in self.spec.shape)
        dtype = NUMPY[self.spec.dtype]
        return self.buffer[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)


@dataclass(frozen=True, slots=True)
class Bound:
    """An instruction with its operands resolved. `weights` by slot name; absent ones are None."""

    opcode: Opcode
    params: Params
    inputs: tuple[Register | None, ...]
    output: Register
    weights: Mapping[str, F32 | None]
    state: StateBlockHandle | None
    page_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    context: ExecutionContext
    sizes: Mapping[int, int]
    positions: I32
    """[rows] position of every row in its sequence."""

    def input(self, op: Bound, index: int = 0) -> F32:
        return cast(F32, cast(Register, op.inputs[index]).view(self.sizes))

    def check_whole(self, op: Bound) -> None:
        """For an op that keeps nothing from step to step. Raises InvalidBatchSize where rows of a slot came before."""
        if self.context.positions.any():
            raise InvalidBatchSize(f"{op.opcode.name.lower()} without state: every slot must begin at position 0")


Adapter = Callable[[Bound, Step], F32]
