"""The state pool against a model of it: who owns what, how often, and what is in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule
from tests.inference.history import PAGE_TOKENS, arenas, fixed, paged

from treadle.errors import InvalidStateDescriptorBinding, InvalidStateLifecycleAction, StateExhausted
from treadle.inference.state import StatePool
from treadle.plan.ir import Lifecycle
from treadle.plan.state import ACTIONS, StateAction

PAGES, SLOTS, MAX_LEN = 12, 4, 32


def make_pool(descriptors, pages=PAGES, slots=SLOTS):
    handles = arenas(descriptors, pages, slots)
    return StatePool(descriptors, handles, pages, slots, MAX_LEN), handles


def write(pool, handles, slot, tokens):
    """Appends tokens to a slot, as a step would."""
    begin = pool.length(slot)
    pool.reserve(slot, begin + len(tokens))
    for id in (0, 2):
        for position, token in enumerate(tokens, start=begin):
            page = int(pool.table[slot, position // PAGE_TOKENS])
            handles[id].page(page).view(np.int32)[position % PAGE_TOKENS] = token + id
    if 1 in handles:
        handles[1].page(slot).view(np.int32)[0] += sum(tokens)
    pool.commit(slot, begin + len(tokens))


def read(pool, handles, slot, id):
    pages = [int(pool.table[slot, p // PAGE_TOKENS]) for p in range(pool.length(slot))]
    return [int(handles[id].page(page).view(np.int32)[p % PAGE_TOKENS]) - id for p, page in enumerate(pages)]


DESCRIPTORS = (paged(0), fixed(1), paged(2, zero_init=True))


class PagedMachine(RuleBasedStateMachine):
    """Two paged states. The model keeps every slot's tokens in a list."""

    descriptors = (DESCRIPTORS[0], DESCRIPTORS[2])
    slots = Bundle("slots")

    def __init__(self):
        super().__init__()
        self.pool, self.handles = make_pool(self.descriptors)
        self.model: dict[int, list[int]] = {}
        self.saved = []
        self.next_token = 1

    def new_tokens(self, count):
        tokens = list(range(self.next_token, self.next_token + count))
        self.next_token += count
        return tokens

    @rule(target=slots)
    def alloc(self):
        try:
            slot = self.pool.alloc()
        except StateExhausted:
            assert len(self.model) == SLOTS
            return multiple()
        assert slot not in self.model
        self.model[slot] = []
        return slot

    @rule(slot=slots, count=st.integers(1, 11))
    def append(self, slot, count):
        if slot not in self.model or len(self.model[slot]) + count > MAX_LEN:
            return
        needed, free = self.pool.pages_needed(slot, len(self.model[slot]) + count), self.pool.free_pages
        table = self.pool.table.copy()
        tokens = self.new_tokens(count)
        try:
            write(self.pool, self.handles, slot, tokens)
        except StateExhausted:
            assert needed > free
            assert (self.pool.free_pages, self.pool.table.tolist()) == (free, table.tolist())
            return
        assert self.pool.free_pages == free - needed
        self.model[slot] += tokens

    @rule(slot=slots, count=st.integers(1, 11))
    def reserve_and_cancel(self, slot, count):
        """A step that is cancelled writes garbage behind what is committed, and commits nothing."""
        if slot not in self.model or len(self.model[slot]) + count > MAX_LEN:
            return
        begin = len(self.model[slot])
        try:
            self.pool.reserve(slot, begin + count)
        except StateExhausted:
            return
        for position in range(begin, begin + count):
            page = int(self.pool.table[slot, position // PAGE_TOKENS])
            self.handles[0].page(page).view(np.int32)[position % PAGE_TOKENS] = -77

    @rule(target=slots, slot=slots)
    def clone(self, slot):
        if slot not in self.model:
            return multiple()
        free = self.pool.free_pages
        try:
            copy = self.pool.clone(slot)
        except StateExhausted:
            assert self.pool.free_pages == free
            return multiple()
        assert free - self.pool.free_pages == (len(self.model[slot]) % PAGE_TOKENS > 0)
        self.model[copy] = list(self.model[slot])
        return copy

    @rule(slot=slots, share=st.floats(0, 1))
    def truncate(self, slot, share):
        if slot not in self.model:
            return
        length = int(share * len(self.model[slot]))
        kept = self.pool.truncate(slot, length)
        restarts = 1 in self.handles and length < len(self.model[slot])  # fixed state cannot run backwards
        assert kept == (0 if restarts else length)
        self.model[slot] = self.model[slot][:kept]

    @precondition(lambda self: 0 < len(self.model) < SLOTS)
    @rule(target=slots, data=st.data())
    def fork_and_diverge(self, data):
        """A clone goes back into what it shares and takes another way; whichever writes first copies the page."""
        source = data.draw(st.sampled_from(sorted(self.model)))
        try:
            copy = self.pool.clone(source)
        except StateExhausted:
            return multiple()
        self.model[copy] = list(self.model[source])
        back = data.draw(st.sampled_from([source, copy]))
        self.truncate(back, data.draw(st.floats(0, 1)))
        for slot in data.draw(st.permutations([source, copy])):
            self.append(slot, data.draw(st.integers(1, 5)))
            self.content_is_right()
        return copy

    @rule(slot=slots)
    def reset_and_reuse(self, slot):
        if slot not in self.model:
            return
        self.pool.reset(slot)
        with pytest.raises(InvalidStateLifecycleAction):
            self.pool.reserve(slot, 1)
        self.pool.reuse(slot)
        self.model[slot] = []

    @rule(slot=slots)
    def evict(self, slot):
        if slot in self.model:
            self.saved.append((self.pool.evict(slot, keep=True), self.model.pop(slot)))

    @precondition(lambda self: self.saved)
    @rule(target=slots)
    def restore(self):
        saved, tokens = self.saved[-1]
        try:
            slot = self.pool.alloc(saved)
        except StateExhausted:
            return multiple()
        self.saved.pop()
        self.model[slot] = tokens
        return slot

    @rule(slot=consumes(slots))
    def deinit(self, slot):
        self.pool.deinit(slot)
        self.model.pop(slot, None)
        self.pool.deinit(slot)  # slot-persistent: idempotent

    @invariant()
    def content_is_right(self):
        for slot, tokens in self.model.items():
            assert self.pool.length(slot) == len(tokens)
            assert read(self.pool, self.handles, slot, 0) == tokens
            assert read(self.pool, self.handles, slot, 2) == tokens
            if 1 in self.handles:
                assert self.handles[1].page(slot).view(np.int32)[0] == sum(tokens)

    @invariant()
    def nothing_leaks(self):
        held = [int(p) for slot in self.model for p in self.pool.table[slot] if p >= 0]
        assert len(set(held)) + self.pool.free_pages == PAGES
        assert self.pool.free_slots == SLOTS - len(self.model)
        unused = set(range(SLOTS)) - self.model.keys()
        assert all((self.pool.table[slot] == -1).all() for slot in unused)

    @invariant()
    def only_full_pages_are_shared(self):
        """Two slots may hold one page only where both have written it full, and hold the same tokens in it."""
        owners: dict[int, list[tuple[int, int]]] = {}
        for slot in self.model:
            for k, page in enumerate(self.pool.table[slot]):
                if page >= 0:
                    owners.setdefault(int(page), []).append((slot, k))
        for shared in owners.values():
            parts = {tuple(self.model[slot][: (k + 1) * PAGE_TOKENS][k * PAGE_TOKENS :]) for slot, k in shared}
            longest = max(parts, key=len)
            assert all(part == longest[: len(part)] for part in parts)


class MixedMachine(PagedMachine):
    """A fixed state beside the paged ones."""

    descriptors = DESCRIPTORS


TestPagedMachine = PagedMachine.TestCase
TestMixedMachine = MixedMachine.TestCase
TestPagedMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestMixedMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("lifecycle", list(Lifecycle))
@pytest.mark.parametrize("action", list(StateAction))
def test_refused_actions_raise_and_change_nothing(lifecycle, action):
    pool, _ = make_pool([paged(0, lifecycle=lifecycle), fixed(1, lifecycle=lifecycle)])
    slot = pool.alloc()
    pool.reserve(slot, 6)
    pool.commit(slot, 6)
    calls = {
        StateAction.ALLOC: pool.alloc,
        StateAction.RESET: lambda: pool.reset(slot),
        StateAction.REUSE: lambda: pool.reuse(slot),
        StateAction.EVICT: lambda: pool.evict(slot),
        StateAction.CLONE: lambda: pool.clone(slot),
        StateAction.TRUNCATE: lambda: pool.truncate(slot, 6),
        StateAction.DEINIT: lambda: pool.deinit(slot),
    }
    before = (pool.free_pages, pool.free_slots, pool.table.tolist(), pool.length(slot))
    if (lifecycle, action) in ACTIONS and action is not StateAction.REUSE:
        calls[action]()
        return
    with pytest.raises(InvalidStateLifecycleAction):
        calls[action]()
    assert (pool.free_pages, pool.free_slots, pool.table.tolist(), pool.length(slot)) == before


def test_one_refusing_descriptor_refuses_for_the_slot():
    pool, _ = make_pool([paged(0), fixed(1, lifecycle=Lifecycle.REQUEST_SCOPED)])
    slot = pool.alloc()
    with pytest.raises(InvalidStateLifecycleAction, match="state 1: reset"):
        pool.reset(slot)


def test_keeping_evicted_content_of_a_request_scoped_state_is_refused():
    pool, _ = make_pool([paged(0, lifecycle=Lifecycle.REQUEST_SCOPED)])
    slot = pool.alloc()
    with pytest.raises(InvalidStateLifecycleAction, match="keep"):
        pool.evict(slot, keep=True)
    assert pool.free_slots == SLOTS - 1


def test_second_deinit_of_request_scoped_state_is_refused():
    pool, _ = make_pool([paged(0, lifecycle=Lifecycle.REQUEST_SCOPED)])
    slot = pool.alloc()
    pool.deinit(slot)
    with pytest.raises(InvalidStateLifecycleAction):
        pool.deinit(slot)


@pytest.mark.parametrize(
    ("lifecycle", "zero_init", "expected"),
    [
        (Lifecycle.SLOT_PERSISTENT, False, -1),
        (Lifecycle.SLOT_PERSISTENT, True, 0),
        (Lifecycle.REQUEST_SCOPED, False, 0),
        (Lifecycle.STEP_SCOPED, False, 0),
    ],
)
def test_alloc_zeroes_what_the_table_says(lifecycle, zero_init, expected):
    descriptors = [
        paged(0, lifecycle=lifecycle, zero_init=zero_init),
        fixed(1, lifecycle=lifecycle, zero_init=zero_init),
    ]
    pool, handles = make_pool(descriptors)
    for handle in handles.values():
        handle.buffer.view(np.int32)[:] = -1
    slot = pool.alloc()
    pool.reserve(slot, 1)
    assert handles[0].page(int(pool.table[slot, 0])).view(np.int32).tolist() == [expected] * PAGE_TOKENS
    assert handles[1].page(slot).view(np.int32).tolist() == [expected] * 2


def test_fixed_state_alone_needs_no_pages():
    pool, _ = make_pool([fixed(0)])
    slot = pool.alloc()
    pool.reserve(slot, 1000)
    pool.commit(slot, 1000)
    assert (pool.total_pages, pool.pages_for(1000), pool.pages_needed(slot, 2000)) == (0, 0, 0)
    copy = pool.clone(slot)
    assert pool.length(copy) == 1000


def test_paged_states_must_agree_on_the_page():
    with pytest.raises(InvalidStateDescriptorBinding, match=r"\[4, 8\]"):
        make_pool([paged(0), paged(1, page_tokens=8)])


def test_exhaustion_is_typed():
    pool, _ = make_pool([paged(0)], pages=2)
    slot = pool.alloc()
    with pytest.raises(StateExhausted, match="3 state pages needed, 2 of 2 free"):
        pool.reserve(slot, 9)
    assert pool.free_pages == 2
    for _ in range(SLOTS - 1):
        pool.alloc()
    with pytest.raises(StateExhausted, match="slot"):
        pool.alloc()
