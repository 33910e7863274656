"""The state action table: what may be done to state of each lifecycle, and what it does to the pages.

The pool (inference/state.py) asks this table and obeys; the scheduler knows descriptors and these actions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

import msgspec

from treadle.errors import InvalidStateLifecycleAction
from treadle.plan.ir import Lifecycle, StateDescriptor


class StateAction(Enum):
    ALLOC = "alloc"
    RESET = "reset"
    REUSE = "reuse"
    EVICT = "evict"
    CLONE = "clone"
    TRUNCATE = "truncate"
    DEINIT = "deinit"


class Zeroing(Enum):
    NEVER = "never"
    IF_ZERO_INIT = "if_zero_init"
    ALWAYS = "always"


class ActionRule(msgspec.Struct, frozen=True):
    """What an allowed action does. `zeroing`: of the pages it hands out or keeps; `releases`: pages go back;
    `copies`: content is carried over (shared by count where the page is full, else copied)."""

    zeroing: Zeroing = Zeroing.NEVER
    releases: bool = False
    copies: bool = False
    needs_reset: bool = False
    may_save: bool = False
    idempotent: bool = False


_SLOT, _REQUEST, _STEP = Lifecycle.SLOT_PERSISTENT, Lifecycle.REQUEST_SCOPED, Lifecycle.STEP_SCOPED

ACTIONS: Final[Mapping[tuple[Lifecycle, StateAction], ActionRule]] = {
    (_SLOT, StateAction.ALLOC): ActionRule(zeroing=Zeroing.IF_ZERO_INIT),
    (_REQUEST, StateAction.ALLOC): ActionRule(zeroing=Zeroing.ALWAYS),
    (_STEP, StateAction.ALLOC): ActionRule(zeroing=Zeroing.ALWAYS),
    (_SLOT, StateAction.RESET): ActionRule(zeroing=Zeroing.IF_ZERO_INIT),
    (_STEP, StateAction.RESET): ActionRule(zeroing=Zeroing.ALWAYS),
    (_SLOT, StateAction.REUSE): ActionRule(needs_reset=True),
    (_SLOT, StateAction.EVICT): ActionRule(releases=True, may_save=True),
    (_REQUEST, StateAction.EVICT): ActionRule(releases=True),
    (_STEP, StateAction.EVICT): ActionRule(releases=True),
    (_SLOT, StateAction.CLONE): ActionRule(copies=True),
    (_REQUEST, StateAction.CLONE): ActionRule(copies=True),
    (_SLOT, StateAction.TRUNCATE): ActionRule(releases=True),
    (_SLOT, StateAction.DEINIT): ActionRule(releases=True, idempotent=True),
    (_REQUEST, StateAction.DEINIT): ActionRule(releases=True),
    (_STEP, StateAction.DEINIT): ActionRule(releases=True),
}
"""An action that is not here is refused."""


def rule(descriptor: StateDescriptor, action: StateAction) -> ActionRule:
    """The rule for an action on a state. Raises InvalidStateLifecycleAction where it is refused."""
    found = ACTIONS.get((descriptor.lifecycle, action))
    if found is None:
        raise InvalidStateLifecycleAction(
            f"state {descriptor.id}: {action.value} is refused for {descriptor.lifecycle.name.lower()} state"
        )
    return found


def zeroes(descriptor: StateDescriptor, found: ActionRule) -> bool:
    """Whether the action clears this state's pages."""
    return found.zeroing is Zeroing.ALWAYS or (found.zeroing is Zeroing.IF_ZERO_INIT and descriptor.zero_init)
