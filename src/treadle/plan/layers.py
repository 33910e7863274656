"""Which layer an instruction belongs to: plans are flat, but weights of a layer are named layers.N. and so on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

BEFORE: Final = -1
BEHIND: Final = 1 << 30
"""Instructions in front of the layers and after them."""
_NUMBERED: Final = re.compile(r"^layers\.(\d+)\.")
_OUTSIDE: Final = frozenset({"pool"})
"""Ops that are in no layer though they may have no weights that would tell."""


def layers_of(instructions: Iterable[tuple[str, Collection[str]]]) -> list[int]:
    """The layer of each instruction, which is given by its op's name and the names of its weights.

    Instructions without weights go with the one before them.
    """
    found: list[int] = []
    layer = BEFORE
    for op, weights in instructions:
        numbered = next((int(match[1]) for name in weights if (match := _NUMBERED.match(name))), None)
        if numbered is not None:
            layer = numbered
        elif weights or op in _OUTSIDE:
            layer = BEFORE if layer == BEFORE else BEHIND
        found.append(layer)
    return found
