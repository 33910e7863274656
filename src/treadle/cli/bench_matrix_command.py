"""``treadle bench matrix``: the models that speed is judged by, and a record of what was measured."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.cli.options import positive
from treadle.cli.status_line import status_line

if TYPE_CHECKING:
    from treadle.governance.sources import Checkout

NOTES = """\
Models, points and budgets are those of governance/benchmarks.toml in the checkout around the current folder.
--record adds one line for each model to governance/benchmarks.jsonl: the commit, the plan's hash, the machine, and the
report; records are chained as those of `treadle gate` are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = NOTES
    parser.add_argument("--only", action="append", default=[], metavar="MODEL", help="may be repeated")
    parser.add_argument("--threads", type=positive, metavar="N", help="worker threads (default: one a physical core)")
    parser.add_argument("--numerics", default="fast", help="default: %(default)s")
    parser.add_argument("--repeat", type=positive, default=3, metavar="N", help="runs a point (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="check the models, budgets and records, measure nothing")
    parser.add_argument("--record", action="store_true", help="keep what was measured")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")


def execute(options: argparse.Namespace) -> int:
    from treadle.bench.matrix import read_matrix, run_matrix
    from treadle.bench.report import table
    from treadle.governance.runs import BENCHMARKS, record_benchmark
    from treadle.governance.sources import Checkout

    checkout = Checkout.around(Path.cwd())
    if options.list:
        return show_list(checkout, options)
    about = checkout.begin(BENCHMARKS.covers) if options.record else None
    matrix = read_matrix(checkout.folder)
    with status_line() as say:
        reports = run_matrix(
            matrix, options.only, threads=options.threads, numerics=options.numerics, repeat=options.repeat, say=say
        )
    if about is not None:
        for report in reports:
            record_benchmark(checkout, about, report)
    if options.json:
        print(json.dumps({"models": reports}))
    else:
        print("\n\n".join(table(report) for report in reports))
    return 0


def show_list(checkout: "Checkout", options: argparse.Namespace) -> int:
    import msgspec

    from treadle.bench.matrix import check_models, listing, read_matrix
    from treadle.governance.runs import BENCHMARKS, ledger_of

    matrix, kept = read_matrix(checkout.folder), ledger_of(checkout, BENCHMARKS).records
    check_models(matrix)
    if options.json:
        print(json.dumps({**msgspec.to_builtins(matrix), "records": len(kept)}))
    else:
        print("\n".join(listing(matrix)) + f"; {len(kept)} records")
    return 0
