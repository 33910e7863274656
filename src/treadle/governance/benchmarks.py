"""Benchmark reports kept as records, beside the evidence of the phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from treadle.governance.ledger import Benchmark, Entry, Ledger
from treadle.governance.sources import Checkout, machine, now

RECORDS: Final = "benchmarks.jsonl"
COVERS: Final = ["src", "native"]


def records(checkout: Checkout) -> list[Entry]:
    """What was recorded so far. Raises InvalidRecord where the file was altered."""
    return Ledger(checkout.folder / RECORDS).records


def record(checkout: Checkout, report: Mapping[str, Any]) -> None:
    """Appends a report of `bench.report.run_bench`. Raises InvalidRecord for changes that are not committed."""
    Ledger(checkout.folder / RECORDS).append(
        Benchmark(
            number=0,
            previous="",
            date=now(),
            phase="",
            commit=checkout.commit(),
            tree=checkout.tree(COVERS),
            model=report["model"],
            plan=report["plan"],
            machine=machine(),
            isa=report["isa"],
            report=dict(report),
        )
    )
