"""The contract's run-time types: the state action table, adapter tables, execution contexts, views."""

from __future__ import annotations

import numpy as np
import pytest
from tests.plan.builder import decoder
from tests.plan.edits import replace

from treadle.errors import InvalidBatchSize, InvalidStateLifecycleAction, UnsupportedBatchSize, UnsupportedOpcode
from treadle.plan.adapters import AdapterCapability, AdapterTable, BatchSupport
from treadle.plan.context import ExecutionContext
from treadle.plan.ir import DType, Lifecycle, Opcode, Stage, StateDescriptor, Symbol
from treadle.plan.state import ACTIONS, ActionRule, StateAction, rule, zeroes
from treadle.plan.views import PhysicalMapping, StateBlockHandle, StepLimits, TensorView

# The table of the contract, section 5, row by row: slot_persistent, request_scoped, step_scoped.
# z zeroed, i zeroed if zero_init, n not zeroed, - refused; then what else the action does.
TABLE = {
    "alloc": ("i", "z", "z"),
    "reset": ("i", "-", "z"),
    "reuse": ("n needs_reset", "-", "-"),
    "evict": ("n releases may_save", "n releases", "n releases"),
    "clone": ("n copies", "n copies", "-"),
    "truncate": ("n releases", "-", "-"),
    "deinit": ("n releases idempotent", "n releases", "n releases"),
}
CELLS = [
    (action, lifecycle, cell) for action, row in TABLE.items() for lifecycle, cell in zip(Lifecycle, row, strict=True)
]


def descriptor(lifecycle: Lifecycle, zero_init: bool) -> StateDescriptor:
    return StateDescriptor(3, 4096, 64, zero_init, lifecycle, 64)


@pytest.mark.parametrize(("action", "lifecycle", "cell"), CELLS)
def test_state_actions(action, lifecycle, cell):
    zeroing, *effects = cell.split()
    for zero_init in (False, True):
        state = descriptor(lifecycle, zero_init)
        if zeroing == "-":
            with pytest.raises(
                InvalidStateLifecycleAction, match=f"state 3: {action} is refused for {lifecycle.name.lower()}"
            ):
                rule(state, StateAction(action))
            continue
        found = rule(state, StateAction(action))
        assert zeroes(state, found) == {"z": True, "i": zero_init, "n": False}[zeroing]
        flags = ("releases", "copies", "needs_reset", "may_save", "idempotent")
        assert {flag for flag in flags if getattr(found, flag)} == set(effects)


def test_the_table_is_whole():
    assert set(TABLE) == {action.value for action in StateAction}
    assert all(isinstance(found, ActionRule) for found in ACTIONS.values())
    assert len(ACTIONS) == sum(cell != "-" for _, _, cell in CELLS)


NATIVE = AdapterCapability(frozenset({DType.F32, DType.Q8_0}), max_batch=4)
ALL = {int(i.opcode): ("adapter", NATIVE) for i in decoder().plan.instructions}
STORED = {b.index: DType.Q8_0 for b in decoder().weight_bindings}


def test_a_table_has_256_entries_and_says_what_it_claims():
    table = AdapterTable("toy", {0: ("norm", NATIVE), 130: ("fused", NATIVE)})
    assert len(table.entries) == len(table.capabilities) == 256
    assert table.claimed() == {0, 130}
    assert (table.get(0), table.get(130)) == ("norm", "fused")
    with pytest.raises(UnsupportedOpcode, match="toy has no adapter for opcode 1"):
        table.get(1)


def test_a_plan_that_the_table_runs_whole():
    AdapterTable("toy", ALL).require(decoder(), STORED, batch=4)


def test_a_missing_adapter_is_refused_with_what_would_run_instead():
    table = AdapterTable("toy", {k: v for k, v in ALL.items() if k != Opcode.SWIGLU})
    with pytest.raises(
        UnsupportedOpcode, match=r"instruction 5 \(swiglu\) of q8_0 weights: backend toy .*: reference, cpu"
    ):
        table.require(decoder(), STORED, batch=1, alternatives=("reference", "cpu"))


def test_a_weight_type_that_the_adapter_does_not_take():
    stored = {**STORED, 0: DType.Q4_K}
    with pytest.raises(UnsupportedOpcode, match=r"instruction 0 \(embedding\): .* q4_k weights \(0\.table\)"):
        AdapterTable("toy", ALL).require(decoder(), stored, batch=1)


def test_batches_beyond_the_capability():
    with pytest.raises(UnsupportedBatchSize, match="batch 5 exceeds toy's 4"):
        AdapterTable("toy", ALL).require(decoder(), STORED, batch=5)


def test_per_slot_adapters_need_the_callers_word():
    slow = replace(NATIVE, batch=BatchSupport.PER_SLOT)
    table = AdapterTable("toy", {**ALL, int(Opcode.LM_HEAD): ("loop", slow)})
    table.require(decoder(), STORED, batch=1)
    table.require(decoder(), STORED, batch=2, allow_per_slot=True)
    with pytest.raises(UnsupportedBatchSize, match=r"\(lm_head\): toy runs it slot by slot; batch 2"):
        table.require(decoder(), STORED, batch=2)


def i32(*values):
    return np.array(values, np.int32)


def step(**changes) -> ExecutionContext:
    """Slot 5 brings rows 0..2 of a new sequence, slot 2 one row at position 7."""
    fields = {
        "mode": Stage.PREFILL,
        "active_slots": i32(5, 2),
        "seq_lens": i32(3, 8),
        "query_lens": i32(3, 1),
        "positions": i32(0, 7),
        "inputs": (i32(1, 2, 3, 4),),
        "page_table": np.array([[0, -1], [3, 1]], np.int32),
        "state_slots": i32(0, 1),
        "sampled_rows": i32(2, 3),
    }
    return ExecutionContext(**{**fields, **changes})


def test_a_ragged_step():
    context = step()
    context.check()
    assert (context.batch_size, context.rows) == (2, 4)
    step(sampled_rows=i32()).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"active_slots": i32()}, "at least one active slot"),
        ({"seq_lens": i32(3)}, "seq_lens has 1 entries for 2 active slots"),
        ({"query_lens": i32(3, 1, 1)}, "query_lens has 3 entries"),
        ({"positions": i32(0)}, "positions has 1 entries"),
        ({"page_table": np.zeros((3, 2), np.int32)}, "page_table has 3 entries"),
        ({"state_slots": i32(0)}, "state_slots has 1 entries"),
        ({"active_slots": i32(5, 5)}, "repeats a slot"),
        ({"query_lens": i32(3, 0), "seq_lens": i32(3, 7)}, "at least one row"),
        ({"positions": i32(0, -1), "seq_lens": i32(3, 0)}, "position >= 0"),
        ({"seq_lens": i32(3, 9)}, "positions \\+ query_lens"),
        ({"sampled_rows": i32(3, 2)}, "ascend"),
        ({"sampled_rows": i32(2, 2)}, "ascend"),
        ({"sampled_rows": i32(2, 4)}, r"within \[0, 4\)"),
        ({"sampled_rows": i32(-1, 2)}, "within"),
    ],
)
def test_contradictions_in_a_step(changes, message):
    with pytest.raises(InvalidBatchSize, match=message):
        step(**changes).check()


def test_views():
    view = TensorView(DType.F16, (3, 8), np.zeros((3, 16), np.uint8))
    assert (view.rank, view.strides) == (2, (16,))
    handle = StateBlockHandle(0, 16, 64, np.arange(64, dtype=np.uint8))
    assert handle.page(2).tolist() == list(range(32, 48))
    assert PhysicalMapping((0, 1, 0), (64, 128)).total_bytes == 192
    assert StepLimits(512, 8, 8, 2048, 64).sizes() == {Symbol.ROWS: 512, Symbol.BATCH: 8, Symbol.SAMPLED: 8}
