"""The native CPU backend: lowers a plan, packs its weights, and runs each step in one native call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final, get_args

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from treadle import _native
from treadle.errors import BackendUnavailable, Cancelled, InvalidRequest, InvalidWeights
from treadle.inference.backends.base import BoundProgram, LinkRequest, Numerics
from treadle.inference.backends.cpu_count import default_threads
from treadle.inference.backends.cpu_lowering import FUSIONS, Lowered, lower
from treadle.inference.certificates import code_hash
from treadle.inference.sampling import Sampling, check_record
from treadle.plan.adapters import AdapterCapability, AdapterTable
from treadle.plan.context import ExecutionContext
from treadle.plan.ir import (
    FIRST_BACKEND_OPCODE,
    NO_REGISTER,
    NO_WEIGHT,
    CompiledPlan,
    DType,
    RegisterSpec,
    Symbol,
    WeightBinding,
)
from treadle.plan.params import check_abi
from treadle.plan.views import StepLimits, TensorView

_ALIGN: Final = 64
_VECTOR_TYPES: Final[Mapping[DType, Any]] = {
    DType.F32: np.float32,
    DType.F16: np.float16,
    DType.BF16: ml_dtypes.bfloat16,
}
_MATRIX_TYPES: Final = frozenset(dtype for dtype in DType if _native.packable(int(dtype), 256))

check_abi(_native.abi())
check_record(*_native.sampled_row())

TABLE: Final[AdapterTable[int]] = AdapterTable(
    "cpu",
    {
        opcode: (opcode, AdapterCapability(dtypes=_MATRIX_TYPES, invariant=True))
        for opcode in _native.claimed_opcodes()
        if opcode < FIRST_BACKEND_OPCODE
    },
)
"""The native adapters' opcodes. What runs is bound natively; the entry is the opcode itself."""


class CpuBackend:
    """Runs plans on the CPU. Results are bitwise independent of batch, threads, chunking and ISA.

    numerics: see Numerics. isa: "" for the best that the machine has (or TREADLE_ISA). fusions: names of lowering
    passes.
    """

    name = "cpu"
    table = TABLE

    def __init__(
        self,
        threads: int | None = None,
        numerics: Numerics = "fast",
        isa: str = "",
        fusions: frozenset[str] = FUSIONS,
    ) -> None:
        if numerics not in get_args(Numerics):
            raise InvalidRequest(f"numerics {numerics!r} is unknown; known: {', '.join(get_args(Numerics))}")
        unknown = fusions - FUSIONS
        if unknown:
            raise InvalidRequest(f"fusions {sorted(unknown)} are unknown; known: {sorted(FUSIONS)}")
        if threads is not None and not 1 <= threads <= 1024:
            raise InvalidRequest(f"threads must lie in [1, 1024], found {threads}")
        try:
            self.isa = isa or _native.default_isa()
            if self.isa not in _native.supported_isas():
                raise RuntimeError(f"ISA {self.isa!r} is not available; available: {_native.supported_isas()}")
        except RuntimeError as error:
            raise BackendUnavailable(f"cpu backend: {error}") from None
        self.numerics: Numerics = numerics
        self.threads = threads or default_threads()
        self._fusions = fusions
        self._pool = _native.ThreadPool(self.threads)

    def weight_bytes(self, binding: WeightBinding, dtype: DType) -> int:
        """Bytes of the packed copy: strips for matrices, f32 for vectors. Raises InvalidWeights."""
        if len(binding.shape) == 1:
            if dtype not in _VECTOR_TYPES:
                raise InvalidWeights(f"{binding.name}: a vector of {dtype.name.lower()} is not supported by cpu")
            return _aligned(4 * binding.shape[0])
        count, rows, cols = _matrices(binding)
        if not _native.packable(int(dtype), cols):
            raise InvalidWeights(f"{binding.name}: cpu cannot pack {dtype.name.lower()} rows of {cols} elements")
        return _aligned(count * _native.packed_bytes(int(dtype), rows, cols))

    def register_bytes(self, spec: RegisterSpec, limits: StepLimits) -> int:
        """Bytes of a register at the largest step; every element takes four."""
        sizes = limits.sizes()
        count = 4
        for dim in spec.shape:
            count *= sizes[Symbol(dim)] if dim < 0 else dim
        return _aligned(count)

    def workspace_bytes(self, compiled: CompiledPlan, dtypes: Mapping[int, DType], limits: StepLimits) -> int:
        """Bytes that the ops need besides registers: found by binding the plan to nominal addresses."""
        weights = [(index + 1) * _ALIGN for index in range(len(compiled.weight_bindings))]
        registers = [_ALIGN] * compiled.plan.register_count
        states = {desc.id: _ALIGN for desc in compiled.plan.state_descs}
        program = self._bind(compiled, dtypes, limits, registers, weights, states)
        return _aligned(program.workspace_bytes)

    def pack(self, binding: WeightBinding, view: TensorView, out: NDArray[np.uint8]) -> None:
        """Writes the backend's copy of a weight into its slice of the weight arena."""
        if len(binding.shape) == 1:
            values = np.ascontiguousarray(view.data).view(_VECTOR_TYPES[view.dtype]).astype(np.float32)
            out[: values.nbytes] = values.reshape(-1).view(np.uint8)
            return
        count, rows, cols = _matrices(binding)
        stored = view.data.reshape(count, rows, -1)
        for matrix, packed in zip(stored, out.reshape(count, -1), strict=True):
            _native.pack(self._pool, matrix, int(view.dtype), cols, packed)

    def packing(self, dtypes: Iterable[DType]) -> str:
        """Signatures of the native core's packing, one a dtype. Every ISA and numeric mode reads the same bytes."""
        return "cpu " + " ".join(f"{dtype.name}={_native.packing_signature(int(dtype)):x}" for dtype in sorted(dtypes))

    def checksum(self, data: NDArray[np.uint8]) -> int:
        return _native.checksum(self._pool, data)

    def link(self, request: LinkRequest) -> BoundProgram:
        """Binds a plan to its memory. Raises InvalidInstructionBinding where an operand does not fit its op."""
        compiled = request.compiled
        registers = [_address(request.registers[buffer]) for buffer in request.mapping.buffer_of]
        weights = [_address(weight) for weight in request.weights]
        states = {id: _address(handle.buffer) for id, handle in request.states.items()}
        program = self._bind(compiled, request.dtypes, request.limits, registers, weights, states)
        program.set_workspace(_address(request.workspace), request.workspace.nbytes)
        return CpuProgram(program, request, covered(lower(compiled, self._fusions)))

    def kernels(self) -> str:
        return code_hash([Path(_native.__file__), *sorted(Path(__file__).parent.glob("cpu*.py"))])

    def describe(self) -> Mapping[str, str | int]:
        """The ISA and threads that steps run on, and the numeric mode."""
        return {"isa": self.isa, "threads": self.threads, "numerics": self.numerics}

    def _bind(
        self,
        compiled: CompiledPlan,
        dtypes: Mapping[int, DType],
        limits: StepLimits,
        registers: list[int],
        weights: list[int],
        states: Mapping[int, int],
    ) -> _native.Program:
        descs = {desc.id: desc for desc in compiled.plan.state_descs}

        def register(index: int) -> tuple[int, int]:
            shape = compiled.register_specs[index].shape
            return registers[index], int(np.prod(shape[1:], dtype=np.int64))

        def weight(index: int) -> tuple[int, int, list[int]] | None:
            if index == NO_WEIGHT:
                return None
            return weights[index], int(dtypes[index]), list(compiled.weight_bindings[index].shape)

        def native(op: Lowered) -> tuple[Any, ...]:
            state = None if op.state is None else descs[op.state]
            return (
                op.opcode,
                [register(i) for i in op.inputs if i != NO_REGISTER],
                [register(i) for i in op.outputs],
                [weight(i) for i in op.weights],
                [(block.abi_version, int(block.opcode), block.payload) for block in op.params],
                None if state is None else (states[state.id], state.size_bytes, state.page_tokens),
            )

        bounds = (limits.max_rows, limits.max_batch, limits.max_sampled, limits.max_seq_len, limits.state_pages)
        ops = [native(op) for op in lower(compiled, self._fusions)]
        return _native.make_program(self._pool, self.isa, self.numerics, bounds, ops)


class CpuProgram:
    """A plan bound to the native core. Keeps the memory that the native side points into alive."""

    def __init__(self, program: _native.Program, request: LinkRequest, covers: tuple[range, ...]) -> None:
        self.covers = covers
        self._program = program
        self._memory = request
        compiled, mapping = request.compiled, request.mapping
        self._inputs = tuple(request.registers[mapping.buffer_of[r]].view(np.int32) for r in compiled.plan.inputs)
        self._outputs = tuple(self._output(r) for r in compiled.plan.outputs)

    def _output(self, register: int) -> tuple[NDArray[np.float32], Symbol]:
        spec = self._memory.compiled.register_specs[register]
        rows = self._memory.limits.sizes()[Symbol(spec.shape[0])]
        buffer = self._memory.registers[self._memory.mapping.buffer_of[register]].view(np.float32)
        width = int(np.prod(spec.shape[1:], dtype=np.int64))
        return buffer[: rows * width].reshape(rows, *spec.shape[1:]), Symbol(spec.shape[0])

    def run(self, context: ExecutionContext, sampling: Sampling | None = None) -> tuple[NDArray[np.float32], ...]:
        """Runs a step. Raises InvalidBatchSize (before anything runs), Cancelled, and BackendUnavailable in a process
        that was forked after the model was loaded."""
        for register, value in zip(self._inputs, context.inputs, strict=True):
            register[: value.size] = value
        counters = context.counters
        result = self._program.run(
            context.query_lens,
            context.positions,
            np.ascontiguousarray(context.page_table),
            context.state_slots,
            context.sampled_rows,
            None if sampling is None else sampling.arrays(),
            counters is not None,
        )
        if result is None:
            raise Cancelled("the step was cancelled")
        if counters is not None:
            dispatches, launches, planned, ops = result
            for index, (opcode, nanoseconds, nbytes) in enumerate(ops):
                counters.ran(index, opcode, nanoseconds, nbytes)
            for opcode, count in dispatches.items():
                counters.dispatches[opcode] = counters.dispatches.get(opcode, 0) + count
            counters.launches += launches
            counters.planned_bytes += planned
        sizes = {Symbol.ROWS: context.rows, Symbol.BATCH: context.batch_size, Symbol.SAMPLED: len(context.sampled_rows)}
        return tuple(view[: sizes[symbol]] for view, symbol in self._outputs)

    def cancel(self) -> None:
        """Ends the running step soon: it raises Cancelled. May be called from any thread."""
        self._program.cancel()


def _matrices(binding: WeightBinding) -> tuple[int, int, int]:
    """A weight of two or three axes as (matrices, rows, cols)."""
    if len(binding.shape) not in (2, 3):
        raise InvalidWeights(f"{binding.name}: cpu takes weights of one to three axes, found shape {binding.shape}")
    count, rows, cols = (1, *binding.shape)[-3:]
    return count, rows, cols


def _aligned(count: int) -> int:
    return -(-count // _ALIGN) * _ALIGN


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def covered(ops: tuple[Lowered, ...]) -> tuple[range, ...]:
    """The plan's instructions that each op stands for."""
    ends = accumulate((op.instructions for op in ops), initial=0)
    return tuple(range(first, end) for first, end in pairwise(ends))
