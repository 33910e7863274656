"""The benchmark matrix: the models and points that speed is judged by, and the budgets; read from the checkout."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec

from treadle.bench.compare import Budgets
from treadle.bench.points import Point, choose_points
from treadle.bench.report import run_bench
from treadle.errors import InvalidFile, InvalidRequest
from treadle.governance.runs import MATRIX
from treadle.governance.sources import read_toml
from treadle.inference.engine import describe
from treadle.inference.options import EngineOptions


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`kind`: what it stands for. `model`: where it is not the name. `load`: whether fresh processes are started too.

    An encoder has texts of `lengths`, and `batches` of short ones; see `points.for_encoder`.
    """

    name: str
    kind: str
    model: str = ""
    quantize: str | None = None
    lengths: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    load: bool = False

    @property
    def source(self) -> str:
        """What is loaded."""
        return self.model or self.name

    def points(self) -> tuple[Point, ...]:
        return choose_points(("prefill", "decode", "batch"), self.lengths, self.depths, self.batches)


class Matrix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    budgets: Budgets
    model: list[Model]


def read_matrix(folder: Path) -> Matrix:
    """Of a governance folder. Raises InvalidFile."""
    path = folder / MATRIX
    found = read_toml(path, Matrix)
    names = [model.name for model in found.model]
    for name in names:
        if names.count(name) > 1:
            raise InvalidFile(f"{path}: two models are named {name!r}")
    return found


def check_models(matrix: Matrix) -> None:
    """Compiles every model that needs no file. Raises InvalidFile for a point past its positions, and for names that
    are none as `describe` does."""
    for model in matrix.model:
        if not model.source.startswith("synthetic:"):
            continue
        positions = describe(model.source, EngineOptions()).plans.facts.max_positions
        longest = max(point.length + point.lead for point in model.points())
        if longest > positions:
            raise InvalidFile(f"{MATRIX}: {model.name} has {positions} positions; a point of it takes {longest}")


def listing(matrix: Matrix) -> list[str]:
    """Models with their points, and the budgets."""
    lines = []
    for model in matrix.model:
        kinds = {"prefill": model.lengths, "decode after": model.depths, "batch": model.batches}
        shown = [f"{kind} {', '.join(map(str, sizes))}" for kind, sizes in kinds.items() if sizes]
        lines.append(f"{model.name}: {model.kind}: {'; '.join(shown + ['load'] * model.load)}")
    budgets = msgspec.structs.asdict(matrix.budgets)
    fallbacks = budgets.pop("fallbacks")
    shown = [f"{name} +{share:.0%}" for name, share in budgets.items()]
    return [*lines, f"{len(matrix.model)} models; budgets: {', '.join(shown)}, fallbacks +{fallbacks}"]


def run_matrix(
    matrix: Matrix,
    only: Collection[str],
    *,
    threads: int | None,
    numerics: str,
    repeat: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A report of each model, or of those named in `only`, each from a process of its own: its peak memory is its own.

    Raises InvalidRequest for a name that is not there, and whatever `run_bench` raises.
    """
    if unknown := set(only) - {model.name for model in matrix.model}:
        raise InvalidRequest(
            f"{min(unknown)!r} is not in the matrix: {', '.join(model.name for model in matrix.model)}"
        )
    chosen = [model for model in matrix.model if not only or model.name in only]
    reports = []
    for i, model in enumerate(chosen, start=1):
        say(f"{model.name}, {i} of {len(chosen)}")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            reports.append(process.submit(_measured, model, threads, numerics, repeat).result())
    return reports


def _measured(model: Model, threads: int | None, numerics: str, repeat: int) -> dict[str, Any]:
    report = run_bench(
        model.source,
        model.points(),
        EngineOptions(threads=threads, numerics=numerics, quantize=model.quantize),  # type: ignore[arg-type]
        load=model.load,
        repeat=repeat,
        say=lambda text: None,
    )
    return {"name": model.name, "kind": model.kind, **report}
