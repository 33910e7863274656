"""Runs of the parity and of the benchmark matrix, kept as records beside the evidence of the phases."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from treadle.governance.ledger import Benchmark, Entry, Ledger, Parity
from treadle.governance.sources import Checkout, Sources, machine, read_toml

RunKind = Literal["parity", "benchmarks"]


class Kind(NamedTuple):
    """Records of one kind of run. `covers`: paths; a change in them makes a record stale. `command`: makes one."""

    file: str
    covers: tuple[str, ...]
    command: str


COMPUTES: Final = ("native", *(f"src/treadle/{part}" for part in ("plan", "formats", "models", "compute", "inference")))
PARITY: Final = Kind("parity.jsonl", (*COMPUTES, "src/treadle/parity"), "treadle parity --record")
BENCHMARKS: Final = Kind("benchmarks.jsonl", (*COMPUTES, "src/treadle/bench"), "treadle bench matrix --record")
KINDS: Final[Mapping[RunKind, Kind]] = {"parity": PARITY, "benchmarks": BENCHMARKS}
MATRIX: Final = "benchmarks.toml"
WORST: Final[Mapping[str, Any]] = {"rel_err": max, "noise": max, "top1": min}
"""Figure of a parity case -> which of several is the worst."""


class _Model(msgspec.Struct):
    name: str


class _Models(msgspec.Struct):
    """What a record needs to know of the benchmark matrix; `bench.matrix` reads all of it."""

    model: list[_Model]


def ledger_of(checkout: Checkout, kind: Kind) -> Ledger:
    """Raises InvalidRecord where the file was altered."""
    return Ledger(checkout.folder / kind.file)


def latest(checkout: Checkout, kind: RunKind) -> list[Entry]:
    """The records that count: the last run of parity; the last measurement of each model that the benchmarks ask for,
    or none at all where one was never measured."""
    records = ledger_of(checkout, KINDS[kind]).records
    if kind == "parity":
        return records[-1:]
    wanted = [model.name for model in read_toml(checkout.folder / MATRIX, _Models).model]
    measured = {record.model: record for record in records if isinstance(record, Benchmark)}
    return [measured[model] for model in wanted] if measured.keys() >= set(wanted) else []


def record_benchmark(checkout: Checkout, about: Sources, report: Mapping[str, Any]) -> Entry:
    """Appends a report of `bench.matrix.run_matrix`. Raises InvalidRecord for changes since it was begun."""
    return ledger_of(checkout, BENCHMARKS).append(
        Benchmark(
            **checkout.stamp(about),
            model=report["name"],
            plan=report["plan"],
            machine=machine(),
            isa=report["isa"],
            report=dict(report),
        )
    )


def record_parity(
    checkout: Checkout, about: Sources, cases: Sequence[Mapping[str, Any]], matrix: bytes, versions: Mapping[str, str]
) -> Entry:
    """Appends what came of all cases of the matrix, as `parity.report.totals` gives them. `matrix`: the file's
    content; `versions`: of the oracle. Raises InvalidRecord for changes since it was begun."""
    failed = [f"{_name(case)} {_setting(case)}" for case in cases if case["status"] != "passed"]
    identities = [case["identity"] for case in cases if case["identity"] is not None]
    return ledger_of(checkout, PARITY).append(
        Parity(
            **checkout.stamp(about),
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
