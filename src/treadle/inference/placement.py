"""Where a plan's parts lie once a backend has sized them, and what one decoded token reads: data for `treadle plan`."""

from __future__ import annotations

from typing import Any

import msgspec

from treadle.inference.cost import instruction_costs
from treadle.inference.executor import Layout
from treadle.plan.ir import CompiledPlan, ModelPlans


def placement(plans: ModelPlans, layout: Layout) -> dict[str, Any]:
    """For each stage its registers' buffers, weights as packed, and of each instruction its layer (-1: outside the
    layers) and the bytes that it reads for one token; `per_slot`: the instructions that the backend runs slot by slot.

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
    program = _program(compiled, layout)
    mapping = layout.mappings[program]
    costs = instruction_costs(compiled, layout, "fast")  # bytes are the same in all numerics
    return {
        "layers": [cost.layer for cost in costs],
        "per_slot": sorted(layout.per_slot[program]),
        "buffer_of": list(mapping.buffer_of),
        "buffer_bytes": list(mapping.buffer_bytes),
        "weights": [
            {"dtype": stored[binding.name][0].name.lower(), "bytes": stored[binding.name][1]}
            for binding in compiled.weight_bindings
        ],
        "reads": [
            {
                "weights": cost.weight_bytes,
                "state_per_token": cost.state_bytes_per_token,
                "state_whole": cost.state_bytes // 2,
            }
            for cost in costs
        ],
    }


def _program(compiled: CompiledPlan, layout: Layout) -> int:
    """The program which runs this stage: equal stages share one."""
    for i, program in enumerate(layout.programs):
        if program.plan == compiled.plan and program.register_specs == compiled.register_specs:
            return i
    raise AssertionError(f"stage {compiled.stage.name} was not laid out")
