"""The state pool: the one owner of slots and pages. It obeys the action table of `plan/state.py`.

A slot is one sequence's state over all descriptors. Its paged states share one page table: page p of the slot is
page p of every paged arena. Pages are counted: clones share full pages and never write to a shared one. Fixed states
(page_tokens 0) live in the page that has the slot's own number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidStateDescriptorBinding, InvalidStateLifecycleAction, StateExhausted, TreadleError
from treadle.plan.ir import StateDescriptor
from treadle.plan.state import ActionRule, StateAction, rule, zeroes
from treadle.plan.views import StateBlockHandle


@dataclass(slots=True)
class _Slot:
    pages: list[int] = field(default_factory=list)
    length: int = 0
    """Tokens whose state is written. Pages may reach further: `reserve` comes before the step, `commit` after it."""
    writable: int = 0
    """Up to this length nothing needs to be reserved: the pages are there, and from `length` on the slot's own."""
    awaits_reuse: bool = False


@dataclass(frozen=True, slots=True)
class SavedState:
    """A slot's content outside the pool: descriptor id -> [pages, size_bytes] (one page for a fixed state)."""

    length: int
    content: Mapping[int, NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class _Decision:
    """The rules of all descriptors for one action, taken together."""

    zeroed_paged: tuple[StateBlockHandle, ...]
    zeroed_fixed: tuple[StateBlockHandle, ...]
    may_save: bool
    idempotent: bool
    refusal: TreadleError | None


class StatePool:
    """Slots and pages over arenas that the executor allocated.

    `pages`: physical pages of every paged arena. `slots`: pages of every fixed arena. `max_seq_len`: tokens that one
    slot may hold. Every method that is refused or finds too little raises and changes nothing.
    """

    def __init__(
        self,
        descriptors: Sequence[StateDescriptor],
        handles: Mapping[int, StateBlockHandle],
        pages: int,
        slots: int,
        max_seq_len: int,
    ) -> None:
        self._descriptors = tuple(descriptors)
        self._paged = tuple(handles[d.id] for d in descriptors if d.page_tokens)
        self._fixed = tuple(handles[d.id] for d in descriptors if not d.page_tokens)
        self.page_tokens = _common_page_tokens(descriptors)
        self.total_pages = pages if self._paged else 0
        self.total_slots = slots
        self._free_pages = list(range(self.total_pages))[::-1]
        self._free_slots = list(range(slots))[::-1]
        self._refs = [0] * self.total_pages
        self._slots: dict[int, _Slot] = {}
        self._decisions = {action: self._decide(action) for action in StateAction}
        self.table = np.full((slots, max(1, self.pages_for(max_seq_len))), -1, dtype=np.int32)
        """[slots, pages of the longest sequence] physical pages, padded with -1."""

    # --- what there is ---------------------------------------------------------------------------------------

    @property
    def has_fixed(self) -> bool:
        """Whether some state is overwritten from step to step."""
        return bool(self._fixed)

    @property
    def free_pages(self) -> int:
        return len(self._free_pages)

    @property
    def free_slots(self) -> int:
        return len(self._free_slots)

    def length(self, slot: int) -> int:
        return self._slots[slot].length

    def pages_for(self, length: int) -> int:
        """Pages that `length` tokens take."""
        return -(-length // self.page_tokens) if self._paged else 0

    def pages_needed(self, slot: int, length: int) -> int:
        """Free pages that `reserve(slot, length)` would take: new ones, and copies of shared ones it would write."""
        state = self._slots[slot]
        if length <= state.writable:
            return 0
        count = self.pages_for(length)
        writes = range(state.length // self.page_tokens, min(count, len(state.pages)))
        return max(0, count - len(state.pages)) + sum(self._refs[state.pages[i]] > 1 for i in writes)

    # --- the actions of the contract -------------------------------------------------------------------------

    def alloc(self, saved: SavedState | None = None) -> int:
        """A slot of length 0, or with the content of an evicted one. Raises StateExhausted."""
        decision = self._allowed(StateAction.ALLOC)
        count = self.pages_for(saved.length) if saved else 0
        self._require(slots=1, pages=count)
        slot = self._free_slots.pop()
        state = self._slots[slot] = _Slot()
        for handle in decision.zeroed_fixed:
            handle.page(slot)[:] = 0
        if saved:
            self._grow(slot, state, count)
            state.length = saved.length
            self._write_saved(slot, state, saved)
        return slot

    def reset(self, slot: int) -> None:
        """Content becomes invalid, own pages stay; pages shared with a clone are let go."""
        decision = self._allowed(StateAction.RESET)
        state = self._state(slot)
        own = [page for page in state.pages if self._refs[page] == 1]
        self._release([page for page in state.pages if self._refs[page] > 1])
        for handle in decision.zeroed_paged:
            for page in own:
                handle.page(page)[:] = 0
        for handle in decision.zeroed_fixed:
            handle.page(slot)[:] = 0
        state.pages, state.length, state.writable, state.awaits_reuse = own, 0, 0, True
        self._write_table(slot, state)

    def reuse(self, slot: int) -> None:
        """The same slot and pages serve the next sequence. Only after `reset`."""
        self._allowed(StateAction.REUSE)
        state = self._state(slot)
        if not state.awaits_reuse:
            raise InvalidStateLifecycleAction(f"slot {slot}: reuse needs a reset first")
        state.awaits_reuse = False

    def evict(self, slot: int, keep: bool = False) -> SavedState | None:
        """Gives slot and pages back; with `keep` the content is returned for a later `alloc`."""
        decision = self._allowed(StateAction.EVICT)
        state = self._state(slot)
        if keep and not decision.may_save:
            raise InvalidStateLifecycleAction(f"slot {slot}: evict may not keep content of request or step state")
        saved = self._read_saved(slot, state) if keep else None
        self._free(slot, state)
        return saved

    def clone(self, slot: int) -> int:
        """A new slot with the same content: full pages shared, the partial and the fixed ones copied."""
        self._allowed(StateAction.CLONE)
        source = self._state(slot)
        full = source.length // self.page_tokens if self._paged else 0
        partial = self.pages_for(source.length) - full
        self._require(slots=1, pages=partial)
        copy = self._free_slots.pop()
        state = self._slots[copy] = _Slot(source.pages[:full], source.length)
        for page in state.pages:
            self._refs[page] += 1
        for page in source.pages[full : full + partial]:
            state.pages.append(self._copy_of(page))
        for handle in self._fixed:
            handle.page(copy)[:] = handle.page(slot)
        self._write_table(copy, state)
        return copy

    def truncate(self, slot: int, length: int) -> int:
        """Rolls back to at most `length` tokens and returns how many are left; the rest must be fed again.

        Paged state keeps `length`. Fixed state cannot run backwards: the slot restarts from 0.
        """
        self._allowed(StateAction.TRUNCATE)
        state = self._state(slot)
        if not 0 <= length <= state.length:
            raise ValueError(f"slot {slot}: cannot truncate {state.length} tokens to {length}")
        if self._fixed and length < state.length:
            length = 0
            for handle in self._fixed:
                handle.page(slot)[:] = 0
        kept = self.pages_for(length)
        self._release(state.pages[kept:])
        state.pages, state.length, state.writable = state.pages[:kept], length, 0
        self._write_table(slot, state)
        return length

    def deinit(self, slot: int) -> None:
        """Gives slot and pages back."""
        decision = self._allowed(StateAction.DEINIT)
        if slot not in self._slots:
            if decision.idempotent:
                return
            raise InvalidStateLifecycleAction(f"slot {slot}: deinit of a slot that is not in use")
        self._free(slot, self._slots[slot])

    # --- growing ---------------------------------------------------------------------------------------------

    def reserve(self, slot: int, length: int) -> None:
        """Before a step: pages for `length` tokens, those behind the committed ones writable by this slot alone.

        Raises StateExhausted where the pool has too few free pages.
        """
        state = self._state(slot)
        if length <= state.writable:
            return
        if state.awaits_reuse:
            raise InvalidStateLifecycleAction(f"slot {slot}: was reset; reuse it before writing")
        self._require(slots=0, pages=self.pages_needed(slot, length))
        count = self.pages_for(length)
        for i in range(state.length // self.page_tokens, min(count, len(state.pages))):
            if self._refs[state.pages[i]] > 1:
                shared = state.pages[i]
                state.pages[i] = self._copy_of(shared)
                self._refs[shared] -= 1
                self.table[slot, i] = state.pages[i]
        self._grow(slot, state, count)
        state.writable = count * self.page_tokens if self._paged else length

    def commit(self, slot: int, length: int) -> None:
        """After a step: `length` tokens are written."""
        state = self._state(slot)
        if self._paged and length > len(state.pages) * self.page_tokens:
            raise ValueError(f"slot {slot}: {length} tokens were not reserved")
        state.length = length

    # --- parts -----------------------------------------------------------------------------------------------

    def _decide(self, action: StateAction) -> _Decision:
        rules: list[tuple[StateDescriptor, ActionRule]] = []
        for descriptor in self._descriptors:
            try:
                rules.append((descriptor, rule(descriptor, action)))
            except InvalidStateLifecycleAction as refusal:
                return _Decision((), (), False, False, refusal)
        zeroed = {d.id for d, found in rules if zeroes(d, found)}
        return _Decision(
            tuple(handle for handle in self._paged if handle.id in zeroed),
            tuple(handle for handle in self._fixed if handle.id in zeroed),
            may_save=all(found.may_save for _, found in rules),
            idempotent=all(found.idempotent for _, found in rules),
            refusal=None,
        )

    def _allowed(self, action: StateAction) -> _Decision:
        decision = self._decisions[action]
        if decision.refusal is not None:
            raise InvalidStateLifecycleAction(str(decision.refusal))
        return decision

    def _state(self, slot: int) -> _Slot:
        state = self._slots.get(slot)
        if state is None:
            raise InvalidStateLifecycleAction(f"slot {slot} is not in use")
        return state

    def _require(self, slots: int, pages: int) -> None:
        if slots > len(self._free_slots):
            raise StateExhausted(f"no free slot of {self.total_slots}")
        if pages > len(self._free_pages):
            raise StateExhausted(f"{pages} state pages needed, {len(self._free_pages)} of {self.total_pages} free")

    def _take(self) -> int:
        page = self._free_pages.pop()
        self._refs[page] = 1
        for handle in self._decisions[StateAction.ALLOC].zeroed_paged:
            handle.page(page)[:] = 0
        return page

    def _copy_of(self, source: int) -> int:
        page = self._take()
        for handle in self._paged:
            handle.page(page)[:] = handle.page(source)
        return page

    def _grow(self, slot: int, state: _Slot, count: int) -> None:
        for i in range(len(state.pages), count):
            state.pages.append(self._take())
            self.table[slot, i] = state.pages[i]

    def _release(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._refs[page] -= 1
            if self._refs[page] == 0:
                self._free_pages.append(page)

    def _free(self, slot: int, state: _Slot) -> None:
        self._release(reversed(state.pages))
        del self._slots[slot]
        self.table[slot] = -1
        self._free_slots.append(slot)

    def _write_table(self, slot: int, state: _Slot) -> None:
        self.table[slot] = -1
        self.table[slot, : len(state.pages)] = state.pages

    def _read_saved(self, slot: int, state: _Slot) -> SavedState:
        pages = state.pages[: self.pages_for(state.length)]
        content = {h.id: np.array([h.page(p) for p in pages], dtype=np.uint8) for h in self._paged}
        content |= {h.id: h.page(slot)[None].copy() for h in self._fixed}
        return SavedState(state.length, content)

    def _write_saved(self, slot: int, state: _Slot, saved: SavedState) -> None:
        for handle in self._paged:
            for page, content in zip(state.pages, saved.content[handle.id], strict=True):
                handle.page(page)[:] = content
        for handle in self._fixed:
            handle.page(slot)[:] = saved.content[handle.id][0]


def _common_page_tokens(descriptors: Sequence[StateDescriptor]) -> int:
    """The one page length of all paged states; 1 where there are none."""
    found = {d.page_tokens for d in descriptors if d.page_tokens}
    if len(found) > 1:
        raise InvalidStateDescriptorBinding(f"paged states must agree on page_tokens, found {sorted(found)}")
    return found.pop() if found else 1
