"""``treadle onboard``: what an unknown model shares with the known families, and a draft of its family file."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHOWN = 12
"""Lines of one list that the text report shows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model folder, a config.json, a .gguf file, or a model's name")
    parser.add_argument("--out", type=Path, metavar="FILE.py", help="write the draft of the family file")
    parser.add_argument("--force", action="store_true", help="replace FILE.py if it is there")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def execute(options: argparse.Namespace) -> int:
    import msgspec

    from treadle.errors import InvalidRequest
    from treadle.inference.tools import onboard

    out: Path | None = options.out
    if out is not None and out.exists() and not options.force:
        raise InvalidRequest(f"{out} exists; --force replaces it")
    report = msgspec.to_builtins(onboard(options.model))
    if out is not None and report["draft"] is not None:
        out.write_text(report["draft"])
    if options.json:
        print(json.dumps(report))
    else:
        show(report, out)
    return 0


def show(report: Mapping[str, Any], out: Path | None) -> None:
    total = report["tensors"]
    print(f"{report['model']}: model_type {report['model_type']!r}, {total} tensors")
    if report["supported"]:
        print("supported: it runs as it is")
        return
    print(f"not supported: {report['reason']}")
    readers = [fit for fit in report["fits"] if fit["readable"]]
    for fit in readers[:3]:
        placed, missing, keys = (
            fit["tensors_placed"],
            len(fit["missing"]),
            len(fit["unknown_keys"]) + len(fit["refused"]),
        )
        print(f"  {fit['family']:16} places {placed} of {total} tensors; misses {missing}; refuses {keys} keys")
    if not readers:
        nearest = report["fits"][0]
        print(f"no family reads this config; {nearest['family']}, for one: {nearest['refused'][-1]}")
        return
    show_fit(readers[0])
    if report["draft"] is None:
        return
    if out is None:
        print("\n--out FILE.py writes a draft of the family file; --family-file FILE.py then runs the model with it")
    else:
        print(f"\nwrote {out}; decide what it lists, then: treadle run MODEL --family-file {out}")


def show_fit(fit: Mapping[str, Any]) -> None:
    print(f"\nas {fit['family']}:")
    ops: dict[str, list[str]] = {}
    for row in fit["placed"]:
        ops.setdefault(row["op"], []).append(row["slot"])
    for op, slots in ops.items():
        print(f"  {op:20} {', '.join(dict.fromkeys(slots))}")
    show_list("values that it refuses", [text.partition(": ")[2] for text in fit["refused"]])
    keys = [f"{key} = {json.dumps(value)[:60]}" for key, value in fit["unknown_keys"].items()]
    show_list("keys that it does not know", keys)
    show_list("tensors without a place", [f"{name}  ({hint}?)" for name, hint in fit["left_over"].items()])
    show_list("tensors that it misses", fit["missing"])


def show_list(title: str, lines: list[str]) -> None:
    if lines:
        print(f"  {title}:")
        for line in lines[:SHOWN]:
            print(f"    {line}")
        if len(lines) > SHOWN:
            print(f"    and {len(lines) - SHOWN} more")
