"""Folds repeated blocks of text lines: lines that differ only in whole numbers which advance evenly.

    r1 = f(r0)          i = 0..2:
    r2 = f(r1)    ->    | r{i+1} = f(r{i})
    r3 = f(r2)

Nothing is lost: putting 0, 1, 2, ... for i gives the lines back.
"""

from __future__ import annotations

import re
from typing import Final

MAX_PERIOD: Final = 512
_NUMBER: Final = re.compile(r"(?<!\d)(0|[1-9]\d*)(?!\d)")
"""Leading zeros make a number text."""

Line = tuple[tuple[str, ...], tuple[int, ...]]
"""The text between numbers, and the numbers."""


def fold(lines: list[str], shortest: int = 1) -> list[str]:
    """The lines with repeated blocks (of at least `shortest` lines, at least twice) written once."""
    parsed = [_parse(line) for line in lines]
    following = _next_alike(parsed)
    out: list[str] = []
    i = 0
    while i < len(lines):
        period, repeats = _best(parsed, following, i, shortest)
        if repeats < 2:
            out.append(lines[i])
            i += 1
            continue
        out.append(f"i = 0..{repeats - 1}:")
        out += [f"| {_template(parsed[i + k], parsed[i + period + k])}" for k in range(period)]
        i += period * repeats
    return out


def _parse(line: str) -> Line:
    parts = _NUMBER.split(line)
    return tuple(parts[::2]), tuple(int(number) for number in parts[1::2])


def _next_alike(parsed: list[Line]) -> list[list[int]]:
    """For each line, the following lines of the same text within MAX_PERIOD."""
    where: dict[tuple[str, ...], list[int]] = {}
    found: list[list[int]] = [[] for _ in parsed]
    for i in range(len(parsed) - 1, -1, -1):
        later = where.setdefault(parsed[i][0], [])
        found[i] = [j for j in reversed(later[-MAX_PERIOD:]) if j - i <= MAX_PERIOD]
        later.append(i)
    return found


def _best(parsed: list[Line], following: list[list[int]], i: int, shortest: int) -> tuple[int, int]:
    """(period, repeats) that covers the most lines from i on; the shortest period among equals."""
    best = (0, 1)
    for j in following[i]:
        period = j - i
        repeats = _repeats(parsed, i, period) if period >= shortest else 1
        if repeats > 1 and period * repeats > best[0] * best[1]:
            best = (period, repeats)
    return best


def _repeats(parsed: list[Line], i: int, period: int) -> int:
    """How often the block of `period` lines at i occurs in a row, its numbers advancing evenly."""
    count = 1
    while i + (count + 1) * period <= len(parsed):
        for k in range(period):
            first, second = parsed[i + k], parsed[i + period + k]
            here = parsed[i + count * period + k]
            if first[0] != here[0] or second[0] != here[0]:
                return count
            for a, b, c in zip(first[1], second[1], here[1], strict=True):
                if b < a or c != a + count * (b - a):
                    return count
        count += 1
    return count


def _template(first: Line, second: Line) -> str:
    texts, numbers = first
    out = [texts[0]]
    for text, a, b in zip(texts[1:], numbers, second[1], strict=True):
        if a == b:
            out.append(str(a))
        else:
            out.append("{" + ("" if b - a == 1 else str(b - a)) + "i" + (f"+{a}" if a else "") + "}")
        out.append(text)
    return "".join(out)
