"""Rules over param blocks and state descriptors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from treadle.errors import InvalidInstructionBinding, InvalidParamBlockABI, InvalidPlan, InvalidStateDescriptorBinding
from treadle.plan.ir import Lifecycle, StateDescriptor
from treadle.plan.ops import OPS, StateRule
from treadle.plan.param_struct import MAX_PAYLOAD
from treadle.plan.params import unpack
from treadle.plan.rules.subject import Op, Rule, Subject
from treadle.plan.rules.values import feature_findings

MAX_STATE_ID: Final = 0xFFFF
MAX_PAGE_BYTES: Final = 1 << 40
MAX_PAGE_TOKENS: Final = 1 << 16
MAX_ALIGN: Final = 1 << 21


def _param_block(s: Subject) -> Iterator[str]:
    blocks = s.compiled.param_blocks
    for op in s.ops:
        block_id = op.instruction.param_block_id
        if op.spec is None:
            continue
        if block_id is None or not 0 <= block_id < len(blocks):
            yield f"{op.label}: param block {block_id}, expected one of 0..{len(blocks) - 1}"
        elif blocks[block_id].opcode != op.instruction.opcode:
            yield f"{op.label}: param block {block_id} belongs to {blocks[block_id].opcode.name.lower()}"


def _param_abi(s: Subject) -> Iterator[str]:
    for i, block in enumerate(s.compiled.param_blocks):
        name = OPS[block.opcode].name if block.opcode in OPS else f"opcode {int(block.opcode)}"
        if len(block.payload) > MAX_PAYLOAD:
            yield f"param block {i} ({name}): {len(block.payload)} bytes; at most {MAX_PAYLOAD}"
            continue
        newest = s.versions.newest(block.opcode)
        if block.abi_version != newest or not newest:
            yield f"param block {i} ({name}): version {block.abi_version}, expected {newest}"
            continue
        try:
            unpack(block, s.versions.layouts)
        except InvalidParamBlockABI as error:
            yield f"param block {i}: {error}"


def _params_used(s: Subject) -> Iterator[str]:
    used = {op.instruction.param_block_id for op in s.ops}
    for i, block in enumerate(s.compiled.param_blocks):
        if i not in used:
            yield f"param block {i} ({block.opcode.name.lower()}): no instruction uses it"


def _param_values(s: Subject) -> Iterator[str]:
    for op in s.ops:
        if op.block is not None:
            yield from (f"{op.label}: {found}" for found in op.block.values)


def _param_relations(s: Subject) -> Iterator[str]:
    for op in s.ops:
        if op.block is not None:
            yield from (f"{op.label}: {found}" for found in op.block.relations)


def _features(s: Subject) -> Iterator[str]:
    for op in s.ops:
        if op.sound is not None and op.spec is not None and len(op.instruction.weights) == len(op.spec.weights):
            yield from (f"{op.label}: {found}" for found in feature_findings(op.sound, op.present))


def _state_rule(op: Op) -> StateRule:
    """What kind of state the instruction needs; an encoder's attention keeps none."""
    if op.spec is None or (op.sound is not None and not op.sound.stateful()):
        return StateRule.NONE
    return op.spec.state


def _by_id(s: Subject) -> dict[int, StateDescriptor]:
    return {state.id: state for state in s.plan.state_descs}


def _state_ids(s: Subject) -> Iterator[str]:
    counts = Counter(state.id for state in s.plan.state_descs)
    for state_id, count in counts.items():
        if count > 1 or not 0 <= state_id <= MAX_STATE_ID:
            yield f"state id {state_id}: {count} descriptors; ids are unique, of 0..{MAX_STATE_ID}"


def _state_binding(s: Subject) -> Iterator[str]:
    states = _by_id(s)
    for op in s.ops:
        state_id = op.instruction.state_block_id
        if op.spec is None or (op.sound is None and op.spec.state is StateRule.PAGED):
            continue
        if _state_rule(op) is StateRule.NONE:
            if state_id is not None:
                yield f"{op.label}: it keeps no state, found state {state_id}"
        elif state_id is None or state_id not in states:
            yield f"{op.label}: state {state_id} is not described"


def _state_users(s: Subject) -> Iterator[str]:
    users = Counter(op.instruction.state_block_id for op in s.ops)
    for state_id in _by_id(s):
        if users[state_id] != 1:
            yield f"state {state_id}: {users[state_id]} instructions use it, expected one"


def _stateful(s: Subject) -> Iterator[tuple[Op, StateDescriptor]]:
    states = _by_id(s)
    for op in s.ops:
        state = states.get(op.instruction.state_block_id) if op.instruction.state_block_id is not None else None
        if state is not None and _state_rule(op) is not StateRule.NONE:
            yield op, state


def _state_pages(s: Subject) -> Iterator[str]:
    for op, state in _stateful(s):
        if _state_rule(op) is StateRule.FIXED and state.page_tokens != 0:
            yield f"{op.label}: state {state.id} has page_tokens {state.page_tokens}, expected 0 (one page a slot)"
        if _state_rule(op) is StateRule.PAGED and not 1 <= state.page_tokens <= MAX_PAGE_TOKENS:
            yield f"{op.label}: state {state.id} has page_tokens {state.page_tokens}, expected 1..{MAX_PAGE_TOKENS}"


def _state_page_tokens(s: Subject) -> Iterator[str]:
    paged = {state.page_tokens for _, state in _stateful(s) if 0 < state.page_tokens <= MAX_PAGE_TOKENS}
    if len(paged) > 1:
        yield f"paged states cover {sorted(paged)} tokens a page; one page table serves them all, so one size"


def _state_size(s: Subject) -> Iterator[str]:
    for op, state in _stateful(s):
        paged = _state_rule(op) is StateRule.PAGED
        if op.sound is None or (paged and not 1 <= state.page_tokens <= MAX_PAGE_TOKENS):
            continue
        expected = op.sound.state_page_bytes(state.page_tokens if paged else 0)
        whole = -(-expected // state.align_bytes) * state.align_bytes if state.align_bytes > 0 else expected
        if state.size_bytes not in (expected, whole) or whole > MAX_PAGE_BYTES:
            found = f"{op.label}: state {state.id} has pages of {state.size_bytes} bytes"
            yield f"{found}, the params need {expected}, or {whole} to keep pages aligned (at most {MAX_PAGE_BYTES})"


def _state_align(s: Subject) -> Iterator[str]:
    for state in s.plan.state_descs:
        align = state.align_bytes
        if not 1 <= align <= MAX_ALIGN or align & (align - 1):
            yield f"state {state.id}: align_bytes {align} is not a power of two of 1..{MAX_ALIGN}"


def _state_lifecycle(s: Subject) -> Iterator[str]:
    for op, state in _stateful(s):
        if state.lifecycle is Lifecycle.STEP_SCOPED:
            yield f"{op.label}: state {state.id} is step_scoped, but the op reads what earlier steps left"


RULES: Final = (
    Rule("param-block", InvalidInstructionBinding, _param_block),
    Rule("param-abi", InvalidParamBlockABI, _param_abi),
    Rule("params-used", InvalidPlan, _params_used),
    Rule("param-values", InvalidInstructionBinding, _param_values),
    Rule("param-relations", InvalidInstructionBinding, _param_relations),
    Rule("features", InvalidInstructionBinding, _features),
    Rule("state-ids", InvalidStateDescriptorBinding, _state_ids),
    Rule("state-binding", InvalidStateDescriptorBinding, _state_binding),
    Rule("state-users", InvalidStateDescriptorBinding, _state_users),
    Rule("state-pages", InvalidStateDescriptorBinding, _state_pages),
    Rule("state-page-tokens", InvalidStateDescriptorBinding, _state_page_tokens),
    Rule("state-size", InvalidStateDescriptorBinding, _state_size),
    Rule("state-align", InvalidStateDescriptorBinding, _state_align),
    Rule("state-lifecycle", InvalidStateDescriptorBinding, _state_lifecycle),
)
