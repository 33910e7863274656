"""Runs of the parity and of the benchmark matrix, kept as records beside the evidence of the phases."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from treadle.errors import InvalidFile
from treadle.governance.ledger import Benchmark, Entry, Evidence, Ledger, Parity
from treadle.governance.sources import Checkout, machine


class Kind(NamedTuple):
    """Records of one kind of run. `covers`: paths; a change in them makes a record stale. `command`: makes one."""

    file: str
    covers: tuple[str, ...]
    command: str


COMPUTES: Final = ("native", *(f"src/treadle/{part}" for part in ("plan", "formats", "models", "compute", "inference")))
PARITY: Final = Kind("parity.jsonl", (*COMPUTES, "src/treadle/parity"), "treadle parity --record")
BENCHMARKS: Final = Kind("benchmarks.jsonl", (*COMPUTES, "src/treadle/bench"), "treadle bench matrix --record")
KINDS: Final[Mapping[str, Kind]] = {"parity": PARITY, "benchmarks": BENCHMARKS}
MATRIX: Final = "benchmarks.toml"
WORST: Final[Mapping[str, Any]] = {"rel_err": max, "noise": max, "top1": min}
"""Figure of a parity case -> which of several is the worst."""


def ledger_of(checkout: Checkout, kind: Kind) -> Ledger:
    """Raises InvalidRecord where the file was altered."""
    return Ledger(checkout.folder / kind.file)


def evidence(checkout: Checkout, name: Literal["parity", "benchmarks"], tree: str) -> Entry | None:
    """The record that decides: the last run of parity; of the benchmarks' models, each of which must have been
    measured, the last one, or one that was not measured on these sources."""
    records = ledger_of(checkout, KINDS[name]).records
    if name == "parity":
        return records[-1] if records else None
    latest = {record.model: record for record in records if isinstance(record, Benchmark)}
    try:
        wanted = [model["name"] for model in tomllib.loads((checkout.folder / MATRIX).read_text("utf-8"))["model"]]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise InvalidFile(f"{checkout.folder / MATRIX}: {error}") from None
    if any(model not in latest for model in wanted):
        return None
    found = sorted((latest[model] for model in wanted), key=lambda record: record.number)
    stale = [record for record in found if record.tree != tree]
    return next(iter([*stale, *found[::-1]]), None)


def outcome(record: Entry) -> tuple[bool, str]:
    """Whether it proves something, and what it says in a line."""
    if isinstance(record, Evidence):
        return record.exit_code == 0, record.output
    if isinstance(record, Parity):
        counts = f"{record.passed} passed, {len(record.failed)} failed"
        return not record.failed and record.passed > 0, ": ".join([counts, *record.failed[:1]])
    if isinstance(record, Benchmark):
        loops = record.report["per_slot_fallbacks"]
        return loops == 0, f"{record.model}, {len(record.report['points'])} points, {loops} per-slot fallbacks"
    raise TypeError(f"{type(record).__name__} is no evidence")


def record_benchmark(checkout: Checkout, report: Mapping[str, Any]) -> Entry:
    """Appends a report of `bench.matrix.run_matrix`. Raises InvalidRecord for changes that are not committed."""
    return ledger_of(checkout, BENCHMARKS).append(
        Benchmark(
            **checkout.stamp(checkout.tree(BENCHMARKS.covers)),
            model=report["name"],
            plan=report["plan"],
            machine=machine(),
            isa=report["isa"],
            report=dict(report),
        )
    )


def record_parity(
    checkout: Checkout, cases: Sequence[Mapping[str, Any]], matrix: bytes, versions: Mapping[str, str]
) -> Entry:
    """Appends what came of all cases of the matrix, as `parity.report.totals` gives them. `matrix`: the file's
    content; `versions`: of the oracle. Raises InvalidRecord for changes that are not committed."""
    failed = [f"{_name(case)} {_setting(case)}" for case in cases if case["status"] != "passed"]
    identities = [case["identity"] for case in cases if case["identity"] is not None]
    return ledger_of(checkout, PARITY).append(
        Parity(
            **checkout.stamp(checkout.tree(PARITY.covers)),
            passed=len(cases) - len(failed),
            failed=failed,
            matrix=hashlib.sha256(matrix).hexdigest(),
            plans=_digest(f"{_name(case)} {_setting(case)} {case['plan_hash']}" for case in cases),
            weights=_digest(f"{_name(case)} {_setting(case)} {case['weights_hash']}" for case in cases),
            kernels={identity["backend"]: identity["kernels"] for identity in identities},
            worst={setting: _worst(cases, setting) for setting in dict.fromkeys(map(_setting, cases))},
            versions=dict(versions),
            machine=machine(),
        )
    )


def _name(case: Mapping[str, Any]) -> str:
    return f"{case['family']}/{case['case']}"


def _setting(case: Mapping[str, Any]) -> str:
    return f"{case['backend']} {case['numerics']} {case['weights']}"


def _worst(cases: Sequence[Mapping[str, Any]], setting: str) -> dict[str, float]:
    """Of the cases of a setting that have the figure."""
    found = {}
    for figure, worst in WORST.items():
        values = [case[figure] for case in cases if _setting(case) == setting and case[figure] is not None]
        if values:
            found[figure] = worst(values)
    return found


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
