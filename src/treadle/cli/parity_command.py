"""``treadle parity``: every family of the matrix against transformers, on every backend and numerics."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.cli.options import positive
from treadle.cli.status_line import say

if TYPE_CHECKING:
    from treadle.governance.sources import Checkout, Sources
    from treadle.parity.matrix import Case, Defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", help="a folder with config.json and safetensors to compare instead of the matrix"
    )
    parser.add_argument("--family", metavar="F", help="only this family")
    parser.add_argument("--case", metavar="C", help="only the cases of this name")
    parser.add_argument("--backend", choices=("reference", "cpu"), help="only this backend")
    parser.add_argument("--numerics", choices=("exact", "fast", "bf16"), help="only these numerics")
    parser.add_argument("--threads", type=positive, metavar="N", help="worker threads (default: one a physical core)")
    parser.add_argument(
        "--flips",
        action="store_true",
        help="instead: set each config value to something else; refused by name or right, never silently wrong",
    )
    parser.add_argument("--trace", action="store_true", help="compare every instruction, also where a case passes")
    parser.add_argument(
        "--record", action="store_true", help="keep what came of the whole matrix in governance/parity.jsonl"
    )
    parser.add_argument("--list", action="store_true", help="name the cases, and run nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--html", metavar="FILE", help="write a report, which needs no other file")


def execute(options: argparse.Namespace) -> int:
    from treadle.parity.certify import record, run_checkpoint
    from treadle.parity.matrix import read_matrix
    from treadle.parity.report import line, page, summary, totals, trace_lines
    from treadle.parity.run import choose_settings, run_cases

    matrix = read_matrix()
    cases = matrix.select(options.family, options.case)
    if options.list:
        listed = [{"family": case.family, "case": case.name, "class": case.class_name} for case in cases]
        print(json.dumps(listed) if options.json else "\n".join(f"{c['family']}/{c['case']}" for c in listed))
        return 0
    recording = _recording(options) if options.record else None
    if options.flips:
        return _flips(cases, matrix.defaults, options)
    settings = choose_settings(options.backend, options.numerics)
    chosen = (settings, options.threads, options.trace, say)
    if options.model is None:
        run = run_cases(cases, matrix.defaults, *chosen)
    else:
        run = run_checkpoint(Path(options.model), matrix.defaults, *chosen)
    reports = []
    try:
        for report in run:
            reports.append(report)
            if report.status == "passed":
                record(report)
            if not options.json:
                say("")
                print(line(report), flush=True)
                if options.trace:
                    print("\n".join(trace_lines(report)))
    finally:
        say("")
    if recording is not None:
        from treadle.governance.runs import record_parity
        from treadle.parity.matrix import MATRIX
        from treadle.parity.run import load_oracle

        record_parity(*recording, totals(reports)["cases"], MATRIX.read_bytes(), load_oracle().versions())
    if options.html:
        Path(options.html).write_text(page(reports), encoding="utf-8")
    print(json.dumps(totals(reports)) if options.json else summary(reports))
    return 0 if all(report.status == "passed" for report in reports) else 1


def _recording(options: argparse.Namespace) -> "tuple[Checkout, Sources]":
    """Where a run is recorded. Raises InvalidRequest for a part of the matrix, InvalidRecord for changes that are not
    committed, before anything is run."""
    from treadle.errors import InvalidRequest
    from treadle.governance.runs import PARITY
    from treadle.governance.sources import Checkout

    parts = ("model", "family", "case", "backend", "numerics")
    if options.flips or any(getattr(options, part) is not None for part in parts):
        raise InvalidRequest("--record keeps what came of the whole matrix: give no model and no part of it")
    checkout = Checkout.around(Path.cwd())
    return checkout, checkout.begin(PARITY.covers)


def _flips(cases: Sequence["Case"], defaults: "Defaults", options: argparse.Namespace) -> int:
    import msgspec

    from treadle.parity.flips import FAULTS, Outcome, run_flips

    reports = []
    try:
        for report in run_flips(cases, defaults, threads=options.threads, say=say):
            reports.append(report)
            if not options.json:
                say("")
                name = f"{report.family}/{report.case}: {report.key} = {json.dumps(report.value)}"
                print(f"{report.outcome:9}  {name}  {report.message}", flush=True)
    finally:
        say("")
    counts = {outcome: sum(report.outcome == outcome for report in reports) for outcome in Outcome}
    if options.json:
        print(json.dumps({"outcomes": counts, "flips": [msgspec.to_builtins(report) for report in reports]}))
    else:
        print(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    return 1 if any(report.outcome in FAULTS for report in reports) else 0
