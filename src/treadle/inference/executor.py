"""Binds a model's programs to a backend once, with one copy of weights, state and registers; then runs steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidBatchSize, InvalidPlan, UnsupportedBatchSize
from treadle.inference.backends.base import Backend, BoundProgram, LinkRequest
from treadle.inference.memory import HUGE_PAGE, allocate
from treadle.inference.sampling import Sampling
from treadle.inference.weight_cache import Place, packing_name
from treadle.plan.context import ExecutionContext
from treadle.plan.ir import (
    NO_WEIGHT,
    CompiledPlan,
    DType,
    ModelPlans,
    Opcode,
    Stage,
    StateDescriptor,
    WeightBinding,
)
from treadle.plan.mapping import map_registers
from treadle.plan.verify import verify
from treadle.plan.views import PhysicalMapping, StateBlockHandle, StepLimits, WeightSource

Bytes = NDArray[np.uint8]
Progress = Callable[[int, int], None]
"""Called with (weights packed, weights in all)."""


class MemoryQuote(msgspec.Struct, frozen=True):
    """What a bound model takes, in bytes, known before anything is allocated."""

    weights_bytes: int
    registers_bytes: int
    workspace_bytes: int
    state_bytes_per_token: int
    state_bytes_per_slot: int
    """State that does not grow with the sequence."""
    state_bytes: int
    """All state: every page of every descriptor."""
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The sizes behind a quote, and how the backend takes a batch. Weights are told apart by what they are, not by a
    program's numbering."""

    programs: tuple[CompiledPlan, ...]
    limits: StepLimits
    dtypes: Mapping[WeightBinding, DType]
    weight_bytes: Mapping[WeightBinding, int]
    row_bytes: Mapping[WeightBinding, int]
    """Of one row of a table that an embedding looks rows up in; the whole may be padded."""
    mappings: tuple[PhysicalMapping, ...]
    registers_bytes: int
    workspace_bytes: int
    states: tuple[StateDescriptor, ...]
    per_slot: tuple[frozenset[int], ...]
    """Of each program the instructions that the backend runs slot by slot."""

    def pages(self, state: StateDescriptor) -> int:
        return self.limits.state_pages if state.page_tokens else self.limits.max_batch

    def packing(self, backend: Backend) -> str | None:
        """Names the bytes of the weight arena, given the model's files. None where the backend wants them not kept."""
        name = backend.packing(set(self.dtypes.values()))
        weights = ((binding, int(self.dtypes[binding]), nbytes) for binding, nbytes in self.weight_bytes.items())
        return None if name is None else packing_name(weights, name)

    def quote(self) -> MemoryQuote:
        weights = sum(self.weight_bytes.values())
        state = sum(self.pages(d) * d.size_bytes for d in self.states)
        return MemoryQuote(
            weights_bytes=weights,
            registers_bytes=self.registers_bytes,
            workspace_bytes=self.workspace_bytes,
            state_bytes_per_token=sum(-(-d.size_bytes // d.page_tokens) for d in self.states if d.page_tokens),
            state_bytes_per_slot=sum(d.size_bytes for d in self.states if not d.page_tokens),
            state_bytes=state,
            total_bytes=weights + self.registers_bytes + self.workspace_bytes + state,
        )


def lay_out(
    plans: ModelPlans, backend: Backend, source: WeightSource, limits: StepLimits, allow_per_slot: bool = False
) -> Layout:
    """Checks that the backend can run the model, and sizes everything; allocates nothing.

    `allow_per_slot`: the caller takes adapters that loop over slots.
    Raises InvalidPlan, InvalidWeights, UnsupportedOpcode, UnsupportedBatchSize.
    """
    programs = _programs(plans)
    for program in programs:
        verify(program)
    dtypes = _read_dtypes(programs, source)
    for program in programs:
        backend.table.require(program, _by_index(program, dtypes), limits.max_batch, allow_per_slot)
    mappings = tuple(map_registers(p, lambda spec: backend.register_bytes(spec, limits)) for p in programs)
    return Layout(
        programs=programs,
        limits=limits,
        dtypes=dtypes,
        weight_bytes={binding: backend.weight_bytes(binding, dtype) for binding, dtype in dtypes.items()},
        row_bytes={table: _row_bytes(backend, table, dtypes[table]) for table in _tables(programs)},
        mappings=mappings,
        registers_bytes=max(mapping.total_bytes for mapping in mappings),
        workspace_bytes=max(backend.workspace_bytes(p, _by_index(p, dtypes), limits) for p in programs),
        states=programs[0].plan.state_descs,
        per_slot=tuple(backend.table.per_slot(program) for program in programs),
    )


class Executor:
    """A model bound to a backend. `states` are the arenas that a state pool hands out in pages."""

    def __init__(
        self,
        layout: Layout,
        backend: Backend,
        source: WeightSource,
        progress: Progress | None = None,
        place: Place | None = None,
    ) -> None:
        """Allocates what `layout` says, packs the weights and links the programs. Raises InvalidWeights.

        `place`: where packed weights are looked for, and kept if they are not there. Mapped ones count as allocated:
        a step reads them all.
        """
        self.limits = layout.limits
        self.quote = layout.quote()
        self.states = {d.id: _state(d, layout.pages(d)) for d in layout.states}
        registers = allocate(layout.registers_bytes)
        workspace = allocate(layout.workspace_bytes)
        arena = None if place is None else place.find(sum(layout.weight_bytes.values()))
        self.weights_mapped = arena is not None
        if arena is None:
            arena = _packed(layout, backend, source, progress)
            if place is not None:
                place.keep(arena)
        self.measured_bytes = sum(a.nbytes for a in (registers, workspace, arena)) + sum(
            handle.buffer.nbytes for handle in self.states.values()
        )
        weights = _by_binding(layout, arena)
        bound = [
            backend.link(
                LinkRequest(
                    compiled=program,
                    limits=layout.limits,
                    mapping=mapping,
                    registers=_split(registers, mapping.buffer_bytes),
                    dtypes=_by_index(program, layout.dtypes),
                    weights=tuple(weights[_identity(binding)] for binding in program.weight_bindings),
                    states=self.states,
                    workspace=workspace,
                )
            )
            for program, mapping in zip(layout.programs, layout.mappings, strict=True)
        ]
        self._by_stage = _by_stage(layout.programs, bound)
        self._programs = tuple(bound)

    def run(self, context: ExecutionContext, sampling: Sampling | None = None) -> tuple[NDArray[np.float32], ...]:
        """One step through the program of the context's stage; see `BoundProgram.run`.

        Raises InvalidBatchSize, UnsupportedBatchSize, Cancelled.
        """
        limits = self.limits
        batch, rows, sampled = len(context.active_slots), len(context.inputs[0]), len(context.sampled_rows)
        if batch == 0 or rows == 0:
            raise InvalidBatchSize(f"a step needs slots and rows, found {batch} slots and {rows} rows")
        if batch > limits.max_batch or rows > limits.max_rows or sampled > limits.max_sampled:
            raise UnsupportedBatchSize(
                f"step of {batch} slots, {rows} rows, {sampled} sampled rows; bound for at most "
                f"{limits.max_batch}, {limits.max_rows}, {limits.max_sampled}"
            )
        return self._by_stage[context.mode].run(context, sampling)

    def covers(self, stage: Stage) -> tuple[range, ...]:
        """The instructions of a stage's plan that each op of its bound program stands for."""
        return self._by_stage[stage].covers

    def cancel(self) -> None:
        """From another thread: ends the running step soon; its `run` raises Cancelled."""
        for program in self._programs:
            program.cancel()


def _state(described: StateDescriptor, pages: int) -> StateBlockHandle:
    """The arena of a state's pages. A short sequence touches a little of every layer's, so it begins in small ones."""
    arena = allocate(pages * described.size_bytes, small_pages=HUGE_PAGE)
    return StateBlockHandle(described.id, described.size_bytes, described.align_bytes, arena)


def _programs(plans: ModelPlans) -> tuple[CompiledPlan, ...]:
    """The programs to bind: encode, or prefill, and decode where it is another one."""
    if plans.encode is not None and plans.prefill is None:
        return (plans.encode,)
    if plans.prefill is None or plans.decode is None:
        raise InvalidPlan("generation needs a prefill and a decode program")
    if _same_program(plans.prefill, plans.decode):
        return (plans.prefill,)
    return (plans.prefill, plans.decode)


def _same_program(a: CompiledPlan, b: CompiledPlan) -> bool:
    return msgspec.structs.replace(a, stage=b.stage, diagnostics=b.diagnostics) == b


def _by_stage(programs: tuple[CompiledPlan, ...], bound: list[BoundProgram]) -> dict[Stage, BoundProgram]:
    found = {program.stage: runner for program, runner in zip(programs, bound, strict=True)}
    if Stage.PREFILL in found:
        found.setdefault(Stage.DECODE, found[Stage.PREFILL])
    return found


def _identity(binding: WeightBinding) -> WeightBinding:
    """The binding without its number: equal for every program that uses the same weight."""
    return msgspec.structs.replace(binding, index=0)


def _read_dtypes(programs: tuple[CompiledPlan, ...], source: WeightSource) -> dict[WeightBinding, DType]:
    return {_identity(b): source.dtype(b) for program in programs for b in program.weight_bindings}


def _tables(programs: Iterable[CompiledPlan]) -> Iterator[WeightBinding]:
    """What embeddings look rows up in."""
    for program in programs:
        for instruction in program.plan.instructions:
            if instruction.opcode is Opcode.EMBEDDING:
                yield from (_identity(program.weight_bindings[w]) for w in instruction.weights if w != NO_WEIGHT)


def _row_bytes(backend: Backend, table: WeightBinding, dtype: DType) -> int:
    """Of so many rows that none is there to pad them."""
    rows = 1024
    return backend.weight_bytes(msgspec.structs.replace(table, shape=(rows, *table.shape[1:])), dtype) // rows


def _by_index(program: CompiledPlan, dtypes: Mapping[WeightBinding, DType]) -> dict[int, DType]:
    return {binding.index: dtypes[_identity(binding)] for binding in program.weight_bindings}


def _split(arena: Bytes, sizes: tuple[int, ...]) -> tuple[Bytes, ...]:
    parts, start = [], 0
    for size in sizes:
        parts.append(arena[start : start + size])
        start += size
    return tuple(parts)


def _by_binding(layout: Layout, arena: Bytes) -> dict[WeightBinding, Bytes]:
    """Every weight's part of the arena."""
    parts = _split(arena, tuple(layout.weight_bytes.values()))
    return dict(zip(layout.weight_bytes, parts, strict=True))


def _packed(layout: Layout, backend: Backend, source: WeightSource, progress: Progress | None) -> Bytes:
    """A new arena with every weight packed; the container's pages are given back one by one."""
    arena = allocate(sum(layout.weight_bytes.values()))
    packed = _by_binding(layout, arena)
    for done, (binding, part) in enumerate(packed.items(), start=1):
        view = source.load(binding)
        backend.pack(binding, view, part)
        del view
        source.release(binding)
        if progress is not None:
            progress(done, len(packed))
    return arena
