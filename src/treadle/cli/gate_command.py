"""``treadle gate``: the checklist and the phases of the project: what is proven, what is missing, and who signed."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.cli.status_line import status_line

if TYPE_CHECKING:
    from treadle.governance.checklist import Row
    from treadle.governance.sources import Checkout

NOTES = """\
  checklist      run the proof of each decision and print one row for each (--only 3,12 for some)
  status         every phase: its criteria, what the records say of each, and the signatures
  check PHASE    run a phase's criteria and record what came of them in governance/records.jsonl
  sign PHASE     record a role's signature; refused while evidence is missing, failed, stale or altered
Works in a checkout of treadle's sources. The exit code is 1 where something is not proven."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = NOTES
    parser.add_argument("action", choices=("checklist", "status", "check", "sign"))
    parser.add_argument("phase", nargs="?", help="of check and sign")
    parser.add_argument("--only", type=numbers, default=(), metavar="N,...", help="items of the checklist")
    parser.add_argument("--role", help="of sign: models, inference or compute")
    parser.add_argument("--as", dest="identity", metavar="IDENTITY", help="of sign: who signs")
    parser.add_argument("--note", help="of sign: what was looked at")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def execute(options: argparse.Namespace) -> int:
    from treadle.errors import InvalidRequest
    from treadle.governance.sources import Checkout

    checkout = Checkout.around(Path.cwd())
    if options.action in ("check", "sign") and options.phase is None:
        raise InvalidRequest(f"gate {options.action} needs the name of a phase; `treadle gate status` lists them")
    if options.action == "checklist":
        return show_checklist(checkout, options)
    if options.action == "sign":
        return show_signature(checkout, options)
    return show_phases(checkout, options)


def show_checklist(checkout: "Checkout", options: argparse.Namespace) -> int:
    import msgspec

    from treadle.governance.checklist import prove

    with status_line() as say:
        rows = prove(checkout, options.only, say)
    if options.json:
        print(json.dumps({"proven": all(row.proven for row in rows), "items": msgspec.to_builtins(rows)}))
    else:
        for row in rows:
            mark = "proven" if row.proven else "NOT PROVEN"
            print(f"{row.number:2}  {mark:10}  {row.title} ({row.seconds:.0f} s)")
            for line in row.told:
                print(f"                {line}")
        print(summary(rows))
    return 0 if all(row.proven for row in rows) else 1


def summary(rows: "Sequence[Row]") -> str:
    """The last line, which is what a record of the checklist keeps: how many are proven, and why one is not."""
    failed = [row for row in rows if not row.proven]
    shown = [f"{len(rows) - len(failed)} of {len(rows)} proven", *(f"{row.number}: {row.told[-1]}" for row in failed)]
    return "; ".join(shown)


def show_phases(checkout: "Checkout", options: argparse.Namespace) -> int:
    import msgspec

    from treadle.governance import phases

    if options.action == "check":
        with status_line() as say:
            phases.check(checkout, options.phase, say)
    named = [phases.phase_named(checkout, options.phase)] if options.phase else phases.read_phases(checkout).values()
    ledger = phases.ledger_of(checkout)
    report = []
    for phase in named:
        found = phases.standing(checkout, ledger, phase)
        report.append((phase, found, phases.signatures(ledger, phase, found)))
    if options.json:
        rows = [
            {
                "phase": phase.name,
                "title": phase.title,
                "criteria": [
                    {"criterion": c.id, "what": c.what, **msgspec.to_builtins(found[c.id])}
                    for c in phases.criteria(phase)
                ],
                "signatures": signed,
                "rollback": phase.rollback,
            }
            for phase, found, signed in report
        ]
        print(json.dumps({"phases": rows}))
    else:
        for phase, found, signed in report:
            print(f"{phase.name}: {phase.title}")
            for criterion in phases.criteria(phase):
                point = found[criterion.id]
                print(f"  {point.state:8} {criterion.id}: {criterion.what}\n           {point.why}")
            for role, told in signed.items():
                print(f"  {role}: {told}")
    return 0 if all(point.state == "proven" for _, found, _ in report for point in found.values()) else 1


def show_signature(checkout: "Checkout", options: argparse.Namespace) -> int:
    import msgspec

    from treadle.errors import InvalidRequest
    from treadle.governance.phases import sign

    given = {"--role": options.role, "--as": options.identity, "--note": options.note}
    if missing := [name for name, value in given.items() if not value]:
        raise InvalidRequest(f"gate sign needs {' and '.join(missing)}")
    record = sign(checkout, options.phase, role=options.role, identity=options.identity, note=options.note)
    if options.json:
        print(json.dumps(msgspec.to_builtins(record)))
    else:
        print(f"{record.identity} signed {record.phase} as {record.role}; record {record.number}")
    return 0
