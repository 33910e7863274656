"""The verifier: a table of rules over each stage's plan, and one over what the stages share.

It runs after compilation, after loading and at bind. Its time is linear in the plan's size, which the codec caps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from treadle.errors import InvalidHandoff, InvalidPlan, InvalidStateDescriptorBinding
from treadle.plan.ir import MAX_NAME, CompiledPlan, Handoff, ModelPlans, RegisterSpec, Stage
from treadle.plan.rules import bindings, instructions, weights
from treadle.plan.rules.subject import Rule, Subject, clip
from treadle.plan.upgrade import PUBLISHED, ParamVersions

RULES: Final[tuple[Rule, ...]] = (*instructions.RULES, *bindings.RULES, *weights.RULES)
"""What one stage's plan must satisfy. Each rule passes over what another one refuses."""

STAGE_RULES: Final = tuple(rule for rule in RULES if rule.of_stage)

MAX_HANDOFFS: Final = 64
MAX_FACT: Final = 1 << 40


class ModelRule(msgspec.Struct, frozen=True):
    """A check over all stages of a model; as `Rule`."""

    name: str
    error: type[InvalidPlan]
    check: Callable[[ModelPlans], Iterator[str]]


def _stages(plans: ModelPlans) -> dict[Stage, CompiledPlan]:
    fields = {stage: getattr(plans, stage.name.lower()) for stage in Stage}
    return {stage: compiled for stage, compiled in fields.items() if compiled is not None}


def _identity(plans: ModelPlans) -> Iterator[str]:
    facts = plans.facts
    texts = {
        "facts.model_type": facts.model_type,
        "config_hash": plans.config_hash,
        "compiler_version": plans.compiler_version,
    }
    for name, text in texts.items():
        if not 0 < len(text) <= MAX_NAME or not text.isprintable():
            yield f"{name} is {clip(text)}; expected 1..{MAX_NAME} printable characters"
    for name in ("vocab_size", "hidden_size", "max_positions", "layers"):
        if not 0 < getattr(facts, name) <= MAX_FACT:
            yield f"facts.{name} is {getattr(facts, name)}; expected 1..2^40"


def _stage_slots(plans: ModelPlans) -> Iterator[str]:
    found = _stages(plans)
    if not found:
        yield "no stage has a plan"
    for stage, compiled in found.items():
        if compiled.stage is not stage:
            yield f"the {stage.name.lower()} plan was compiled for {compiled.stage.name.lower()}"
    if (plans.prefill is None) != (plans.decode is None):
        yield "prefill and decode come together or not at all"


def _shared_state(plans: ModelPlans) -> Iterator[str]:
    if plans.prefill is not None and plans.decode is not None:
        before, after = plans.prefill.plan.state_descs, plans.decode.plan.state_descs
        if len(before) != len(after):
            yield f"prefill describes {len(before)} states, decode {len(after)}; they work on the same ones"
        for a, b in zip(before, after, strict=False):
            if a != b:
                yield f"prefill describes state {a.id} otherwise than decode describes state {b.id}"


def _handoff_stages(plans: ModelPlans) -> Iterator[str]:
    if len(plans.handoffs) > MAX_HANDOFFS:
        yield f"{len(plans.handoffs)} handoffs; at most {MAX_HANDOFFS}"
    present = _stages(plans)
    for i, handoff in enumerate(plans.handoffs[:MAX_HANDOFFS]):
        if handoff.source not in present or handoff.target not in present or handoff.source >= handoff.target:
            ends = f"{handoff.source.name.lower()} to {handoff.target.name.lower()}"
            yield f"handoff {i}: from {ends}; both must be present, in the order of stages"
        if handoff.owner not in (handoff.source, handoff.target):
            yield f"handoff {i}: its owner {handoff.owner.name.lower()} is neither end"


def _ends(plans: ModelPlans, handoff: Handoff) -> tuple[RegisterSpec | None, RegisterSpec | None]:
    """Specs of the register given and the one filled; None where there is none of that kind."""
    present = _stages(plans)
    source, target = present.get(handoff.source), present.get(handoff.target)
    ends: list[RegisterSpec | None] = [None, None]
    if source is not None and handoff.source_register in source.plan.outputs:
        ends[0] = source.register_specs[handoff.source_register]
    if target is not None and handoff.target_register in target.plan.inputs:
        ends[1] = target.register_specs[handoff.target_register]
    return ends[0], ends[1]


def _handoff_registers(plans: ModelPlans) -> Iterator[str]:
    filled: set[tuple[Stage, int]] = set()
    present = _stages(plans)
    for i, handoff in enumerate(plans.handoffs[:MAX_HANDOFFS]):
        given, taken = _ends(plans, handoff)
        if given is None and handoff.source in present:
            yield f"handoff {i}: register {handoff.source_register} is no output of {handoff.source.name.lower()}"
        if taken is None and handoff.target in present:
            yield f"handoff {i}: register {handoff.target_register} is no input of {handoff.target.name.lower()}"
        if (handoff.target, handoff.target_register) in filled:
            yield f"handoff {i}: register {handoff.target_register} of {handoff.target.name.lower()} is filled twice"
        filled.add((handoff.target, handoff.target_register))


def _handoff_specs(plans: ModelPlans) -> Iterator[str]:
    for i, handoff in enumerate(plans.handoffs[:MAX_HANDOFFS]):
        given, taken = _ends(plans, handoff)
        if given is None or taken is None:
            continue
        if given != taken:
            yield f"handoff {i}: the register given is {list(given.shape)}, the one filled {list(taken.shape)}"
        if (handoff.dtype, handoff.layout) != (given.dtype, given.layout):
            yield f"handoff {i}: dtype {handoff.dtype.name.lower()}, the register has {given.dtype.name.lower()}"


MODEL_RULES: Final[tuple[ModelRule, ...]] = (
    ModelRule("identity", InvalidPlan, _identity),
    ModelRule("stage-slots", InvalidPlan, _stage_slots),
    ModelRule("shared-state", InvalidStateDescriptorBinding, _shared_state),
    ModelRule("handoff-stages", InvalidHandoff, _handoff_stages),
    ModelRule("handoff-registers", InvalidHandoff, _handoff_registers),
    ModelRule("handoff-specs", InvalidHandoff, _handoff_specs),
)


def verify_compiled(
    compiled: CompiledPlan, rules: tuple[Rule, ...] = RULES, versions: ParamVersions = PUBLISHED
) -> None:
    """Raises the error of the first rule that one stage's plan breaks, naming stage, instruction and rule."""
    subject = Subject(compiled, versions)
    for rule in rules:
        for finding in rule.check(subject):
            raise rule.error(f"{compiled.stage.name.lower()}: {finding} [{rule.name}]")


def verify(plans: ModelPlans | CompiledPlan, versions: ParamVersions = PUBLISHED) -> None:
    """Verifies one stage's plan, or every stage of a model and what they share. Raises a kind of InvalidPlan."""
    if isinstance(plans, CompiledPlan):
        verify_compiled(plans, versions=versions)
        return
    verified: list[CompiledPlan] = []
    for compiled in plans.stages():
        shared = any(msgspec.structs.replace(other, stage=compiled.stage) == compiled for other in verified)
        verify_compiled(compiled, STAGE_RULES if shared else RULES, versions)
        verified.append(compiled)
    for rule in MODEL_RULES:
        for finding in rule.check(plans):
            raise rule.error(f"{finding} [{rule.name}]")
