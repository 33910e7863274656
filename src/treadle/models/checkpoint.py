"""Opening a checkpoint: a GGUF file or a Hugging Face directory becomes config, architecture, plans and weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from treadle.errors import ModelNotFound
from treadle.formats.gguf import GGUFFile
from treadle.formats.json_file import read_json
from treadle.formats.tensors import TensorSource
from treadle.models.compile import CompileOptions, compile_model
from treadle.models.config import Config, Keys
from treadle.models.quantisation import Quantisation
from treadle.models.registry import Family, family_of_file, family_of_gguf, family_of_json
from treadle.models.spec import Architecture
from treadle.models.weights import CheckpointWeights
from treadle.plan.ir import ModelPlans

if TYPE_CHECKING:
    from treadle.formats.synthetic import SyntheticTensors

CONFIG_NAME = "config.json"
SYNTHETIC: Final = "synthetic:"
"""What begins the name of a model that is no file."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open checkpoint. `tensors` is the GGUFFile, SafetensorsFile or SyntheticTensors itself."""

    path: Path
    tensors: TensorSource
    config: Config
    architecture: Architecture
    weights: CheckpointWeights

    def compile(self, options: CompileOptions | None = None) -> ModelPlans:
        """Verified plans, every weight of which this checkpoint holds.

        Raises InvalidWeights or UnsupportedModel naming a tensor that is missing, misshaped, of an unsupported type,
        or without a place in the architecture.
        """
        plans = compile_model(self.architecture, self.config.sha256(), options or CompileOptions())
        for compiled in plans.stages():
            self.weights.check(compiled.weight_bindings, self.architecture.unused)
        return plans

    def close(self) -> None:
        self.tensors.close()


def open_checkpoint(
    path: str | os.PathLike[str],
    quantisation: Quantisation | None = None,
    family_file: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Open a .gguf file, or a directory with config.json and safetensors. `quantisation`: of matrices, on load.

    `family_file`: a user's Python file that describes the model's family; it is run.
    Raises ModelNotFound, InvalidFile (damaged), UnsupportedModel (naming what is not known) or InvalidRequest (the
    family file cannot be run).
    """
    path = Path(path)
    own = None if family_file is None else family_of_file(Path(family_file))
    if path.is_dir():
        return _open_directory(path, quantisation, own)
    if not path.exists():
        raise ModelNotFound(f"{path}: no such file or directory")
    return _open_gguf(path, quantisation, own)


def is_synthetic(model: str | os.PathLike[str]) -> bool:
    return isinstance(model, str) and model.startswith(SYNTHETIC)


def open_synthetic(model: str, quantisation: Quantisation | None = None) -> Checkpoint:
    """The checkpoint that "synthetic:FAMILY:SHAPE:TYPE" describes; there is no file. Raises UnsupportedModel."""
    from treadle.models.synthetic import synthetic_tensors  # a model that is a file needs none of it

    tensors = synthetic_tensors(model)
    return _gguf_checkpoint(Path(model), tensors, quantisation)


def read_config(path: str | os.PathLike[str], own: Family | None = None) -> tuple[Family, Config]:
    """The family and config of a config.json; `own`: a family of the user's."""
    values = read_json(path, infinity=True)
    where = Path(path).name
    family = family_of_json(values.get("model_type"), where, own)
    return family, family.config.read(Keys.of_json(values, where, Path(path).parent))


def _open_directory(path: Path, quantisation: Quantisation | None, own: Family | None) -> Checkpoint:
    family, config = read_config(path / CONFIG_NAME, own)
    architecture = family.architecture(config)
    from treadle.formats.mxfp4_planes import join_planes
    from treadle.formats.safetensors import SafetensorsFile  # a GGUF file needs none of it

    tensors = join_planes(SafetensorsFile.open(path))
    return Checkpoint(path, tensors, config, architecture, CheckpointWeights(tensors, path.name, quantisation))


def _open_gguf(path: Path, quantisation: Quantisation | None, own: Family | None) -> Checkpoint:
    tensors = GGUFFile.open(path)
    try:
        return _gguf_checkpoint(path, tensors, quantisation, own)
    except BaseException:
        tensors.close()
        raise


def _gguf_checkpoint(
    path: Path, tensors: GGUFFile | SyntheticTensors, quantisation: Quantisation | None, own: Family | None = None
) -> Checkpoint:
    family = family_of_gguf(tensors.architecture, path.name, own, tensors.metadata)
    weights = CheckpointWeights(tensors, path.name, quantisation)
    config = family.config.read(Keys.of_gguf(tensors.metadata, tensors.tensors, path.name, weights.values))
    return Checkpoint(path, tensors, config, family.architecture(config), weights)
