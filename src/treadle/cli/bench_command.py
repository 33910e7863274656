"""``treadle bench``: tokens a second over lengths, depths and batches, start-up, shares of the machine's limits."""

import argparse
import json
from pathlib import Path

from treadle.bench.points import add_point_arguments, choose_points
from treadle.cli.figures import human_bytes
from treadle.cli.options import (
    BACKEND_FIELDS,
    NUMERIC_FIELDS,
    add_backend_options,
    add_numeric_options,
    given,
    positive,
)
from treadle.cli.status_line import status_line
from treadle.errors import InvalidRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", help="a name `treadle models` lists, a .gguf file, a model folder or a hub id"
    )
    parser.add_argument(
        "--synthetic",
        metavar="FAMILY:SHAPE:TYPE",
        help="instead of a model: random weights of a shape and type, as in llama:1b:q4_k",
    )
    parser.add_argument("--write", metavar="FILE.gguf", help="write the synthetic model to a file, and measure nothing")
    parser.add_argument("--pull", action="store_true", help="fetch the model first if it is not in the cache")
    add_numeric_options(parser)
    add_backend_options(parser)
    parser.add_argument("--repeat", type=positive, default=3, metavar="N", help="runs a point (default: %(default)s)")
    add_point_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--html", metavar="FILE", help="write a report with plots, which needs no other file")


def execute(options: argparse.Namespace) -> int:
    model = _model(options)
    if options.write:
        return _write(model, options.write)
    if options.pull:
        from treadle.cli.pull_command import pull_if_missing

        pull_if_missing(model)
    from treadle.bench.report import run_bench, table
    from treadle.inference.options import EngineOptions

    with status_line() as say:
        report = run_bench(
            model,
            choose_points(options.points, options.lengths, options.depths, options.batches),
            EngineOptions(**given(options, (*BACKEND_FIELDS, *NUMERIC_FIELDS))),
            load="load" in options.points,
            repeat=options.repeat,
            say=say,
        )
    if options.html:
        from treadle.bench.html import write_page

        write_page(report, Path(options.html))
    print(json.dumps(report) if options.json else table(report))
    return 0


def _model(options: argparse.Namespace) -> str:
    if (options.model is None) == (options.synthetic is None):
        raise InvalidRequest("give either a model or --synthetic FAMILY:SHAPE:TYPE")
    if options.synthetic is None and options.write:
        raise InvalidRequest("--write goes with --synthetic: a model that is a file need not be written")
    if options.write and options.quantize:
        raise InvalidRequest("--write takes no --quantize: the type is part of FAMILY:SHAPE:TYPE")
    return str(options.model) if options.synthetic is None else f"synthetic:{options.synthetic}"


def _write(model: str, path: str) -> int:
    from treadle.inference.tools import write_synthetic

    written = write_synthetic(model, path)
    print(f"{written}: {human_bytes(written.stat().st_size)}")
    return 0
