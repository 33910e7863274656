"""``treadle bench compare``: whether one commit is slower than another, with a stated confidence."""

import argparse
import json
from functools import partial
from pathlib import Path

from treadle.bench.points import add_point_arguments, choose_points
from treadle.cli.options import positive
from treadle.cli.status_line import status_line

NOTES = """\
Both commits are built beside the repository (build/compare) and run side by side in fresh processes each turn, a few
steps of one and a few of the other; a figure is decided once the interval of its ratio lies on one side of its
budget (governance/benchmarks.toml). The interval holds with 99 % confidence, however often it was looked at. Exit code
0: all is within budget; 1: something is beyond it; 3: nothing is beyond it, but noise left something undecided."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = NOTES
    parser.add_argument("base", metavar="BASE", help="a commit")
    parser.add_argument("head", metavar="HEAD", help="a commit")
    parser.add_argument(
        "--model", default="smollm2", help="a model, or synthetic:FAMILY:SHAPE:TYPE (default: %(default)s)"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="worker threads (default: one a physical core)")
    parser.add_argument("--numerics", default="fast", help="default: %(default)s")
    parser.add_argument("--max-turns", type=positive, default=40, metavar="N", help="default: %(default)s")
    add_point_arguments(parser, ("prefill", "decode", "batch"), lengths=(512,), depths=(128,), batches=(8,))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def execute(options: argparse.Namespace) -> int:
    import msgspec

    from treadle.bench.compare import compare, table, to_compare
    from treadle.bench.judge import CONFIDENCE, Verdict
    from treadle.bench.matrix import read_matrix
    from treadle.bench.measure import points_of, room
    from treadle.bench.sides import Side, built
    from treadle.governance.git import root_of
    from treadle.governance.sources import FOLDER

    root = root_of(Path.cwd())
    budgets = read_matrix(root / FOLDER).budgets
    chosen = choose_points(options.points, options.lengths, options.depths, options.batches)
    points = to_compare(points_of(options.model, chosen))
    with status_line() as say:
        sources = [built(root, commit, say) for commit in (options.base, options.head)]
        base, head = (
            partial(Side, name, source, options.model, options.threads or 0, options.numerics, room(points))
            for name, source in zip(("BASE", "HEAD"), sources, strict=True)
        )
        found = compare(base, head, points, budgets, max_turns=options.max_turns, say=say)
    verdicts = {judgement.verdict for judgement in found.judgements.values()}
    if options.json:
        about = {"base": options.base, "head": options.head, "model": options.model, "confidence": CONFIDENCE}
        print(json.dumps({**about, **msgspec.to_builtins(found)}))
    else:
        print(table(found))
    return 1 if Verdict.BEYOND in verdicts else 3 if Verdict.UNDECIDED in verdicts else 0
