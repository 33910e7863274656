"""Where a plan's parts lie once a backend has sized them, and what one decoded token reads: data for `treadle plan`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from treadle.inference.executor import Layout
from treadle.plan.ir import NO_WEIGHT, CompiledPlan, DType, Instruction, ModelPlans, Opcode, WeightBinding
from treadle.plan.params import MoEParams, unpack
from treadle.plan.views import PhysicalMapping


def placement(plans: ModelPlans, layout: Layout) -> dict[str, Any]:
    """For each stage its registers' buffers, weights as packed, and bytes that each instruction reads for one token.

    Stages are in the order of `plans.stages()`; `limits` and pages are those of the quote.
    """
    return {
        "limits": msgspec.structs.asdict(layout.limits),
        "stages": [_stage(compiled, layout) for compiled in plans.stages()],
        "state_pages": [layout.pages(state) for state in layout.states],
        "memory": msgspec.structs.asdict(layout.quote()),
    }


def _stage(compiled: CompiledPlan, layout: Layout) -> dict[str, Any]:
    stored = {binding.name: (dtype, layout.weight_bytes[binding]) for binding, dtype in layout.dtypes.items()}
    mapping = _mapping(compiled, layout)
    return {
        "buffer_of": list(mapping.buffer_of),
        "buffer_bytes": list(mapping.buffer_bytes),
        "weights": [
            {"dtype": stored[binding.name][0].name.lower(), "bytes": stored[binding.name][1]}
            for binding in compiled.weight_bindings
        ],
        "reads": [_reads(compiled, instruction, stored) for instruction in compiled.plan.instructions],
    }


def _mapping(compiled: CompiledPlan, layout: Layout) -> PhysicalMapping:
    """That of the program which runs this stage: equal stages share one."""
    for program, mapping in zip(layout.programs, layout.mappings, strict=True):
        if program.plan == compiled.plan and program.register_specs == compiled.register_specs:
            return mapping
    raise AssertionError(f"stage {compiled.stage.name} was not laid out")


def _reads(compiled: CompiledPlan, instruction: Instruction, stored: Mapping[str, tuple[DType, int]]) -> dict[str, int]:
    """Bytes that one decoded token reads: of weights, of state for each token before it, of state kept whole."""
    states = {state.id: state for state in compiled.plan.state_descs}
    state = None if instruction.state_block_id is None else states[instruction.state_block_id]
    weights = sum(
        _read_of(compiled, instruction, compiled.weight_bindings[index], stored)
        for index in set(instruction.weights) - {NO_WEIGHT}
    )
    paged = state is not None and state.page_tokens > 0
    return {
        "weights": weights,
        "state_per_token": -(-state.size_bytes // state.page_tokens) if state is not None and paged else 0,
        "state_whole": state.size_bytes if state is not None and not paged else 0,
    }


def _read_of(
    compiled: CompiledPlan,
    instruction: Instruction,
    binding: WeightBinding,
    stored: Mapping[str, tuple[DType, int]],
) -> int:
    """An embedding reads one row of its tables, a mixture the experts that it chooses, everything else all of it."""
    nbytes = stored[binding.name][1]
    if instruction.opcode is Opcode.EMBEDDING:
        return nbytes // binding.shape[0]
    if instruction.opcode is Opcode.MOE and len(binding.shape) == 3 and instruction.param_block_id is not None:
        params = unpack(compiled.param_blocks[instruction.param_block_id])
        assert isinstance(params, MoEParams)
        return nbytes * params.experts_per_token // params.num_experts
    return nbytes
