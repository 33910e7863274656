"""What changed between two models' plans, in words: facts, and for each stage its layers, ops, params, weights, states.

Plans are compared as `dump.as_dict` gives them, so that a plan of another version of the compiler can be one side.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import groupby
from typing import Any

import msgspec

from treadle.plan.layers import BEFORE, BEHIND, layers_of

Plan = Mapping[str, Any]


class Kind(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


class Difference(msgspec.Struct, frozen=True):
    """One change. `stage` is "" for what concerns the whole model; `where`: the layers or the part of the stage."""

    kind: Kind
    stage: str
    where: str
    what: str


Change = tuple[Kind, str]


def differences(a: Plan, b: Plan) -> list[Difference]:
    """From `a` to `b`, both as `dump.as_dict` gives them; empty exactly where the plans' hashes are equal."""
    if a["hash"] == b["hash"]:
        return []
    found = [Difference(Kind.CHANGED, "", "model", text) for text in _changed(a["facts"], b["facts"])]
    names = ("contract_version", "compiler_version", "config_hash", "handoffs")
    of_plan = _changed({name: a[name] for name in names}, {name: b[name] for name in names})
    found += [Difference(Kind.CHANGED, "", "plan", text) for text in of_plan]
    mine, theirs = ({stage["stage"]: stage for stage in plan["stages"]} for plan in (a, b))
    same: dict[tuple[tuple[str, Change], ...], list[str]] = {}
    for name in dict.fromkeys([*mine, *theirs]):
        same.setdefault(tuple(_of_stage(mine.get(name), theirs.get(name))), []).append(name)
    for changes, stages in same.items():
        found += [Difference(kind, ", ".join(stages), where, what) for where, (kind, what) in changes]
    return found


def _of_stage(a: Plan | None, b: Plan | None) -> Iterator[tuple[str, Change]]:
    if a is None or b is None:
        stage, kind = (b, Kind.ADDED) if a is None else (a, Kind.REMOVED)
        assert stage is not None
        yield "stage", (kind, f"{len(stage['instructions'])} instructions")
    else:
        yield from _stage(a, b)


def _stage(a: Plan, b: Plan) -> Iterator[tuple[str, Change]]:
    mine, theirs = _by_layer(a), _by_layer(b)
    changes: list[tuple[int, Change]] = []
    for layer in sorted({*mine, *theirs}):
        changes += [(layer, change) for change in _instructions(mine.get(layer, []), theirs.get(layer, []))]
    yield from _gathered(changes)
    for text in _changed(_totals(a), _totals(b)):
        yield "stage", (Kind.CHANGED, text)


def _by_layer(stage: Plan) -> dict[int, list[Plan]]:
    """Instructions by layer; see `layers.layers_of`."""
    weights = {weight["name"]: weight for weight in stage["weights"]}
    states = {state["id"]: state for state in stage["states"]}
    layers: dict[int, list[Plan]] = {}
    numbers = layers_of((i["opcode"], i["weights"].values()) for i in stage["instructions"])
    for instruction, layer in zip(stage["instructions"], numbers, strict=True):
        state = states.get(instruction["state"])
        layers.setdefault(layer, []).append(
            {
                "opcode": instruction["opcode"],
                "params": instruction["params"] or {},
                "weights": {slot: _of_layer(weights[name], layer) for slot, name in instruction["weights"].items()},
                "state": {} if state is None else {k: v for k, v in state.items() if k != "id"},
            }
        )
    return layers


def _instructions(a: list[Plan], b: list[Plan]) -> Iterator[Change]:
    matcher = difflib.SequenceMatcher(None, [i["opcode"] for i in a], [i["opcode"] for i in b], autojunk=False)
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        if tag == "equal":
            for mine, theirs in zip(a[a0:a1], b[b0:b1], strict=True):
                yield from _instruction(mine, theirs)
            continue
        for instruction in a[a0:a1]:
            yield Kind.REMOVED, str(instruction["opcode"])
        for instruction in b[b0:b1]:
            yield Kind.ADDED, str(instruction["opcode"])


def _instruction(a: Plan, b: Plan) -> Iterator[Change]:
    name = a["opcode"]
    for part, prefix in (("params", ""), ("state", "state ")):
        for text in _changed(a[part], b[part]):
            yield Kind.CHANGED, f"{name}: {prefix}{text}"
    mine, theirs = a["weights"], b["weights"]
    for slot in dict.fromkeys([*mine, *theirs]):
        if slot not in theirs:
            yield Kind.REMOVED, f"{name}: weight {slot}"
        elif slot not in mine:
            yield Kind.ADDED, f"{name}: weight {slot} = {theirs[slot]['name']} {theirs[slot]['shape']}"
        else:
            for text in _changed(mine[slot], theirs[slot]):
                yield Kind.CHANGED, f"{name}: weight {slot} {text}"


def _of_layer(weight: Plan, layer: int) -> Plan:
    """The weight with {layer} for the number, so that layers that change alike are told together."""
    text = json.dumps(weight)
    return json.loads(re.sub(rf"(?<=\.){layer}(?=\.)", "{layer}", text)) if layer >= 0 else weight


def _totals(stage: Plan) -> dict[str, object]:
    return {
        "instructions": len(stage["instructions"]),
        "registers": len(stage["registers"]),
        "live registers at most": stage["peak_registers"],
        "states": len(stage["states"]),
        "weights": len(stage["weights"]),
        "register shapes": sorted({f"{r['dtype']} {r['shape']}" for r in stage["registers"]}),
        "diagnostics": stage["diagnostics"],
    }


def _changed(a: Plan, b: Plan) -> list[str]:
    """'name old -> new' for every key that differs."""
    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    return [f"{name} {_change(a.get(name), b.get(name))}" for name in names]


def _change(a: object, b: object) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        return ", ".join(_changed(a, b))
    if isinstance(a, list) and isinstance(b, list) and all(isinstance(item, str) for item in a + b):
        found = [f"+{item}" for item in b if item not in a] + [f"-{item}" for item in a if item not in b]
        return " ".join(found) or f"{a} -> {b}"
    return f"{a} -> {b}"


def _gathered(changes: list[tuple[int, Change]]) -> Iterator[tuple[str, Change]]:
    """The same change in several layers is said once."""
    layers: dict[Change, list[int]] = {}
    for layer, change in changes:
        found = layers.setdefault(change, [])
        if layer not in found:
            found.append(layer)
    for change, where in layers.items():
        yield _spans(where), change


def _spans(layers: list[int]) -> str:
    """'layers 0-4, 6'."""
    numbered = sorted(set(layers) - {BEFORE, BEHIND})
    spans = []
    for _, run in groupby(enumerate(numbered), key=lambda pair: pair[1] - pair[0]):
        numbers = [layer for _, layer in run]
        spans.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
    words = ["before the layers"] if BEFORE in layers else []
    words += [f"{'layer' if len(numbered) == 1 else 'layers'} {', '.join(spans)}"] if numbered else []
    words += ["after the layers"] if BEHIND in layers else []
    return " and ".join(words)
