"""The op table as a Markdown page: `python -m treadle.plan.opdoc > docs/opcodes.md`. A test keeps the page current."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from treadle.plan.ir import CONTRACT_VERSION, DType
from treadle.plan.ops import OPS, OpSpec, Port, StateRule
from treadle.plan.rules.values import RANGES

_STATE = {
    StateRule.NONE: "none",
    StateRule.PAGED: "paged (none where the op is not causal)",
    StateRule.FIXED: "one page a slot",
}


def page() -> str:
    """What every opcode takes, gives and means."""
    lines = [
        f"# Opcodes of contract v{CONTRACT_VERSION}",
        "",
        "Generated from `src/treadle/plan/ops.py` by `python -m treadle.plan.opdoc`. Words in brackets are sizes: one",
        "word has one value within an instruction. `rows`, `batch`, `sampled`, `merged` are known at each step only;",
        "all other words come from the params or from the first operand that has them. `?` marks what may be absent.",
    ]
    for spec in OPS.values():
        lines += ["", *_section(spec)]
    return "\n".join(lines) + "\n"


def _section(spec: OpSpec) -> Iterator[str]:
    yield f"## {spec.opcode.value} {spec.name}"
    yield ""
    yield f"{spec.summary[0].upper()}{spec.summary[1:]}."
    yield ""
    yield f"- stages: {', '.join(stage.name.lower() for stage in sorted(spec.stages))}"
    yield f"- reads: {'; '.join(map(_port, spec.inputs))}"
    yield f"- writes: {'; '.join(map(_port, spec.outputs))}"
    yield f"- state: {_STATE[spec.state]}"
    if spec.weights:
        slots = (f"{slot.name}{'?' if slot.optional else ''} [{' '.join(slot.shape)}]" for slot in spec.weights)
        yield f"- weights: {'; '.join(slots)}"
    yield ""
    yield f"| param (v{spec.params.VERSION}) | default | accepted |"
    yield "|---|---|---|"
    ranges = RANGES[spec.params]
    for field in msgspec.structs.fields(spec.params):
        accepted, default = ranges[field.name], field.default
        if default is msgspec.NODEFAULT:
            shown = ""
        else:
            shown = accepted.kind(default).name.lower() if accepted.kind is not None else f"{default:g}"
        yield f"| {field.name} | {shown} | {accepted.text} |"


def _port(port: Port) -> str:
    dtype = "" if port.dtype is DType.F32 else f" {port.dtype.name.lower()}"
    return f"{port.name}{'?' if port.optional else ''}{dtype} [{' '.join(port.shape)}]"


if __name__ == "__main__":
    print(page(), end="")
