"""Small checkouts with a governance folder, and runs of matrices that were never made."""

import subprocess
from pathlib import Path

from treadle.governance.runs import BENCHMARKS, PARITY, record_benchmark, record_parity
from treadle.governance.sources import Checkout


def git(root, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def commit(root, **files):
    """Writes files, named with __ for /, and commits all there is."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "x")


def checkout_with(root: Path, governance: dict[str, str], paths: list[str]) -> Checkout:
    """A committed checkout that has these files in its governance folder and something at each path."""
    git(root, "init", "-q")
    for name, text in governance.items():
        (root / "governance").mkdir(exist_ok=True)
        (root / "governance" / name).write_text(text)
    for path in paths:
        file = root / path if Path(path).suffix else root / path / "file"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(path)
    commit(root)
    return Checkout(root)


def parity_case(status="passed", **changed):
    """A case as `parity.report.totals` gives it."""
    case = {"family": "llama", "case": "gqa", "backend": "cpu", "numerics": "exact", "weights": "f32"}
    case |= {"status": status, "plan_hash": "p", "weights_hash": "w", "rel_err": 1e-6, "noise": 1e-7, "top1": 1.0}
    return {**case, "identity": {"backend": "cpu", "kernels": "k"}, **changed}


def bench_report(model, per_slot_fallbacks=0):
    """What a record needs of a report of `run_matrix`."""
    found = {"name": model, "model": model, "plan": "p", "isa": "avx2", "points": [{"name": "prefill"}]}
    return {**found, "per_slot_fallbacks": per_slot_fallbacks}


def parity_record(checkout: Checkout, *cases, matrix=b"matrix"):
    """A run of these cases, begun and recorded."""
    return record_parity(checkout, checkout.begin(PARITY.covers), cases, matrix, {"torch": "2"})


def bench_record(checkout: Checkout, model, **report):
    """The same of a model of the benchmark matrix."""
    return record_benchmark(checkout, checkout.begin(BENCHMARKS.covers), bench_report(model, **report))
