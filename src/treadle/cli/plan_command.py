"""``treadle plan``: the compiled plan of a model as text, JSON or a page, or the memory it will take."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.cli.figures import human_bytes, ran_on
from treadle.cli.options import add_engine_options, engine_options
from treadle.errors import InvalidRequest

if TYPE_CHECKING:
    from treadle.inference.loaded import Description

MEMORY_ROWS = {
    "weights_bytes": "weights, packed",
    "registers_bytes": "registers",
    "workspace_bytes": "workspace",
    "state_bytes": "state, all pages",
    "total_bytes": "total",
    "state_bytes_per_token": "state a token",
    "state_bytes_per_slot": "state a slot",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_options(parser)
    parser.add_argument("--memory", action="store_true", help="the memory the engine allocates, without doing so")
    parser.add_argument("--out", type=Path, metavar="FILE.plan", help="write the plan file (see treadle plan diff)")
    parser.add_argument("--for-release", metavar="X.Y.Z", help="with --out: as an earlier release reads it")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that shows it all, for any browser")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def execute(options: argparse.Namespace) -> int:
    chosen = engine_options(options)
    if options.for_release is not None and options.out is None:
        raise InvalidRequest("--for-release goes with --out FILE.plan")
    from treadle.inference.engine import describe

    description = describe(options.model, chosen)
    if options.out is not None:
        description.save_plan(options.out, options.for_release)
        print(f"wrote {options.out}", file=sys.stderr)
    if options.html is not None:
        from treadle.cli.plan_page import write_page

        write_page(description, options.html)
        print(f"wrote {options.html}", file=sys.stderr)
    if options.out is not None or options.html is not None:
        return 0
    if options.memory:
        show_memory(description, as_json=options.json)
    elif options.json:
        about = {"certified": description.info.certified, "per_slot": description.per_slot}
        print(json.dumps({**description.plan_dict, **about, **ran_on(description.info)}))
    else:
        print(description.plan_text)
        print(heading(description), file=sys.stderr)
    return 0


def heading(description: "Description") -> str:
    info = description.info
    certified = "certified" if info.certified else "uncertified"
    loops = ", ".join(f"{count} {name}" for name, count in description.per_slot.items())
    return (
        f"{info.model} on {info.backend}{' (the fallback)' if info.instead_of else ''}, {info.numerics}, {certified}, "
        f"sequences of at most {info.max_model_len} tokens; slot by slot: {loops or 'no instruction'}"
    )


def show_memory(description: "Description", *, as_json: bool) -> None:
    figures = {name: int(getattr(description.memory_quote, name)) for name in MEMORY_ROWS}
    info = description.info
    if as_json:
        print(json.dumps({**figures, "certified": info.certified, **ran_on(info)}))
        return
    print(heading(description))
    for name, label in MEMORY_ROWS.items():
        print(f"  {label:18} {figures[name]:>15,}  {human_bytes(figures[name]):>9}")
