"""``treadle trace``: where the time of one step goes, op by op."""

import argparse
import json
from pathlib import Path

from treadle.cli.options import NUMERIC_FIELDS, add_numeric_options, given, positive
from treadle.cli.status_line import status_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a name `treadle models` lists, a .gguf file, a model folder, or synthetic:...")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--prefill",
        type=positive,
        metavar="N",
        help="the step of a prompt of N tokens, at most 512; of a text of an encoder",
    )
    what.add_argument("--decode", type=positive, default=128, metavar="N", help="after N tokens (default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="sequences (default: %(default)s)")
    add_numeric_options(parser)
    parser.add_argument("--repeat", type=positive, default=30, metavar="N", help="steps (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="every op on its own line, instead of those that are alike")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with a roofline plot")
    parser.add_argument("--chrome", type=Path, metavar="FILE.json", help="write a trace for Perfetto")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def execute(options: argparse.Namespace) -> int:
    from treadle.bench.points import Point
    from treadle.bench.trace import chrome_events, run_trace, table
    from treadle.inference.options import EngineOptions

    if options.prefill:
        point = Point("prefill", tokens=options.prefill, batch=options.batch, prompt=0)
    else:
        point = Point("decode", tokens=1, batch=options.batch, prompt=options.decode)
    with status_line() as say:
        report = run_trace(
            options.model,
            point,
            EngineOptions(**given(options, NUMERIC_FIELDS)),
            repeat=options.repeat,
            say=say,
        )
    if options.html:
        from treadle.bench.trace_html import write_page

        write_page(report, options.html)
    if options.chrome:
        options.chrome.write_text(json.dumps(chrome_events(report)), encoding="utf-8")
    print(json.dumps(report) if options.json else table(report, every=options.all))
    return 0
