"""Transition windows: which contract and params versions this release reads, and when support for each one ends."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Set
from importlib import resources
from itertools import groupby, pairwise
from pathlib import Path

import msgspec

from treadle.errors import InvalidPlan
from treadle.plan.codec import contract_version, decode_as_written
from treadle.plan.ir import CONTRACT_VERSION
from treadle.plan.upgrade import PUBLISHED, ParamVersions

Release = tuple[int, int, int]
Key = tuple[str, int]
"""("contract", version) or (opcode's name, params version)."""


class Window(msgspec.Struct, frozen=True):
    """One version's life. `ends`: the first release that does not read it; None while it is the newest."""

    subject: str
    version: int
    introduced: Release
    ends: Release | None = None


def parse_release(text: str) -> Release:
    """'1.2.3' as numbers. Raises InvalidPlan."""
    parts = text.split(".")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise InvalidPlan(f"release {text!r}; expected three numbers, as in 1.2.3")
    return int(parts[0]), int(parts[1]), int(parts[2])


def parse(text: str) -> tuple[Window, ...]:
    """The windows of a versions.toml."""
    tables: Mapping[str, list[dict[str, object]]] = tomllib.loads(text)
    rows = [("contract", row) for row in tables["contract"]] + [(str(row["opcode"]), row) for row in tables["params"]]
    windows = []
    for subject, row in rows:
        ends = row.get("ends")
        introduced = parse_release(str(row["introduced"]))
        windows.append(
            Window(subject, int(str(row["version"])), introduced, None if ends is None else parse_release(str(ends)))
        )
    return tuple(windows)


def windows() -> tuple[Window, ...]:
    """The windows that this release ships."""
    return parse(resources.files("treadle.plan").joinpath("versions.toml").read_text(encoding="utf-8"))


def accepted(versions: ParamVersions = PUBLISHED) -> frozenset[Key]:
    """What the code at hand reads."""
    layouts = {(opcode.name.lower(), version) for opcode, version in versions.layouts}
    return frozenset({("contract", CONTRACT_VERSION), *layouts})


def held(*folders: Path) -> frozenset[Key]:
    """Every version that the plan files in folders hold. Raises InvalidPlan, OSError."""
    found: set[Key] = set()
    for path in (path for folder in folders for path in folder.glob("*.plan")):
        data = path.read_bytes()
        version = contract_version(data)
        found.add(("contract", version))
        if version == CONTRACT_VERSION:  # the params of other contracts stand in structs that are gone
            stages = decode_as_written(data).stages()
            found.update((b.opcode.name.lower(), b.abi_version) for stage in stages for b in stage.param_blocks)
    return frozenset(found)


def problems(release: str, listed: tuple[Window, ...], reads: Set[Key], golden: Set[Key]) -> Iterator[str]:
    """What is wrong with the windows at a release. `reads`: versions the code reads; `golden`: versions that golden
    files hold. Nothing is yielded where every end has been carried out, every window is short, and every version that
    is read has a golden file."""
    now = parse_release(release)
    known = {(window.subject, window.version) for window in listed}
    for subject, version in sorted((reads | golden) - known):
        yield f"{subject} {version} is not in versions.toml"
    for subject, group in groupby(sorted(listed, key=lambda w: (w.subject, w.version)), key=lambda w: w.subject):
        life = list(group)
        if [window.version for window in life] != list(range(1, len(life) + 1)):
            yield f"{subject}: versions {[window.version for window in life]} are not 1, 2, 3, ..."
        if life[-1].ends is not None:
            yield f"{subject} {life[-1].version} ends, but nothing supersedes it"
        for window, successor in pairwise(life):
            yield from _superseded(window, successor)
        for window in life:
            yield from _at(now, window, reads, golden)


def _superseded(window: Window, successor: Window) -> Iterator[str]:
    name = f"{window.subject} {window.version}"
    if window.ends is None:
        yield f"{name} is superseded by {successor.version} and has no end"
        return
    major, minor, _ = successor.introduced
    if window.ends <= successor.introduced:
        yield f"{name} ends at {_text(window.ends)}, before its successor can be adopted"
    if window.ends > (major, minor + 1, 0):
        yield f"{name} ends at {_text(window.ends)}; one minor release after {_text(successor.introduced)} is the limit"


def _at(now: Release, window: Window, reads: Set[Key], golden: Set[Key]) -> Iterator[str]:
    key = (window.subject, window.version)
    name = f"{window.subject} {window.version}"
    if window.introduced > now:
        yield f"{name} was introduced at {_text(window.introduced)}, which is not released yet"
    if window.ends is None or now < window.ends:
        if key not in reads:
            yield f"{name} is inside its window, but the code does not read it"
        if key not in golden:
            yield f"{name} is inside its window, but no golden file holds it"
        return
    if key in reads:
        yield f"{name} ended at {_text(window.ends)}, but the code still reads it"
    if key in golden:
        yield f"{name} ended at {_text(window.ends)}, but its golden files are still there"


def _text(release: Release) -> str:
    return ".".join(map(str, release))
