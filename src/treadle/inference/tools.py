"""What is done with a model beside running it: other files made of it, plans compared, an unknown one examined."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from treadle.errors import InvalidRequest
from treadle.formats.hub import resolve
from treadle.inference.engine import describe, quantisation_to
from treadle.inference.executor import Progress
from treadle.inference.options import EngineOptions
from treadle.models.checkpoint import open_checkpoint
from treadle.models.quantisation import FLOAT_TYPES, QUANTISED_TYPES

if TYPE_CHECKING:
    from treadle.models.onboard import Onboarding
    from treadle.plan.diff import Difference

__all__ = ["QuantizeReport", "onboard", "plan_data", "plan_differences", "quantize_file", "write_synthetic"]


class QuantizeReport(msgspec.Struct, frozen=True):
    """A file that `quantize_file` wrote. `tensor_types`: how many tensors have each type."""

    model: str
    path: str
    type: str
    tensor_types: dict[str, int]
    source_bytes: int
    file_bytes: int
    seconds: float


def quantize_file(
    model: str | Path,
    target: str | Path,
    dtype: str,
    *,
    threads: int | None = None,
    force: bool = False,
    allow_requantize: bool = False,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Writes a GGUF file of a model with its matrices as `dtype`; `progress` gets bytes written and bytes in all.

    `force`: replace a file that is there. `allow_requantize`: take matrices stored below q8_0. The file appears whole
    or not at all. Raises InvalidRequest, what opening a model raises, UnsupportedModel for what GGUF cannot say.
    """
    from treadle.models.export_gguf import export

    began = time.monotonic()
    path = Path(target)
    if dtype not in (*QUANTISED_TYPES, *FLOAT_TYPES):
        raise InvalidRequest(f"type must be one of {', '.join((*QUANTISED_TYPES, *FLOAT_TYPES))}, found {dtype!r}")
    if path.suffix != ".gguf":
        raise InvalidRequest(f"{path}: the file to write must be named .gguf")
    if path.is_dir() or (path.exists() and not force):
        raise InvalidRequest(f"{path} exists; --force replaces a file")
    if not path.parent.is_dir():
        raise InvalidRequest(f"{path.parent}: no such directory")
    found = resolve(model)
    checkpoint = open_checkpoint(found.path)
    try:
        quantisation = quantisation_to(dtype, threads)
        written = export(checkpoint, quantisation, path, allow_requantize=allow_requantize, progress=progress)
        source_bytes = sum(checkpoint.tensors.info(name).nbytes for name in checkpoint.tensors.names())
    finally:
        checkpoint.close()
    return QuantizeReport(
        model=found.name,
        path=str(path),
        type=dtype,
        tensor_types=written.types,
        source_bytes=source_bytes,
        file_bytes=path.stat().st_size,
        seconds=time.monotonic() - began,
    )


def write_synthetic(model: str, path: str | Path) -> Path:
    """The model that "synthetic:FAMILY:SHAPE:TYPE" describes, as a GGUF file. Raises UnsupportedModel."""
    from treadle.models.export_synthetic import write_synthetic as write

    return write(model, path)


def onboard(model: str | Path) -> Onboarding:
    """What an unknown model folder, config.json or GGUF file shares with the known families.

    Raises ModelNotFound, NotInCache, InvalidFile, UnsupportedModel (no config that could be compared).
    """
    from treadle.models.onboard import examine

    path = Path(model)
    return examine(path if path.exists() else resolve(model).path)


def plan_data(source: str | Path, options: EngineOptions) -> dict[str, Any]:
    """The plans of a model, or of a .plan file, as plain data. Raises as `describe`, and InvalidPlan."""
    path = Path(source)
    if not (path.is_file() and path.suffix == ".plan"):
        return describe(source, options).plan_dict
    from treadle.plan.codec import load as load_plan
    from treadle.plan.dump import as_dict

    return as_dict(load_plan(path))


def plan_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """What changes from one plan, as `plan_data` gives it, to another, in words."""
    from treadle.plan.diff import differences

    return differences(a, b)
