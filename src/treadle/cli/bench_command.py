"""``treadle bench``: tokens a second over lengths, depths and batches, start-up, shares of the machine's limits."""

import argparse
import json
import sys

from treadle.bench.points import add_point_arguments, choose_points
from treadle.cli.options import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a name `treadle models` lists, a .gguf file, a model folder or a hub id")
    parser.add_argument("--pull", action="store_true", help="fetch the model first if it is not in the cache")
    parser.add_argument("--threads", type=positive, metavar="N", help="worker threads (default: one a physical core)")
    parser.add_argument("--numerics", choices=("fast", "exact"), default="fast", help="default: %(default)s")
    parser.add_argument("--repeat", type=positive, default=3, metavar="N", help="runs a point (default: %(default)s)")
    add_point_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def execute(options: argparse.Namespace) -> int:
    if options.pull:
        from treadle.cli.pull_command import pull_if_missing

        pull_if_missing(options.model)
    from treadle.bench.report import run_bench, table

    def say(text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    try:
        report = run_bench(
            options.model,
            choose_points(options.points, options.lengths, options.depths, options.batches),
            load="load" in options.points,
            threads=options.threads,
            numerics=options.numerics,
            repeat=options.repeat,
            say=say,
        )
    finally:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
    print(json.dumps(report) if options.json else table(report))
    return 0
