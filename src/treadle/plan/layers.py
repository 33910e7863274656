"""Which layer an instruction belongs to: plans are flat, but weights of a layer are named layers.N. and so on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_NUMBERED: Final = re.compile(r"^layers\.(\d+)\.")


def layer_of(weights: Iterable[str]) -> int | None:
    """The layer that the first numbered name tells; None where no name does."""
    return next((int(match[1]) for name in weights if (match := _NUMBERED.match(name))), None)
