"""Writes a checkpoint as a GGUF file of another type: the way of `weights.py` backwards, by the same bindings.

A GGUF source keeps all its metadata. A Hugging Face source brings the config's keys and its tokenizer; the config is
read back from what is to be written and must be the same, so that nothing is lost that GGUF cannot say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidWeights, UnsupportedModel
from treadle.formats.gguf import GGUFFile
from treadle.formats.gguf_writer import GGUFWriter, Metadata
from treadle.formats.tensors import TensorInfo, dequantise, quantise, tensor_nbytes
from treadle.formats.tokenizer_export import tokenizer_metadata
from treadle.models.checkpoint import Checkpoint
from treadle.models.config import Config, Declared, Keys, brief
from treadle.models.decoder import BaseDecoderConfig
from treadle.models.llama_cpp import check_loadable
from treadle.models.quantisation import Quantisation, is_exact
from treadle.models.registry import family_of_gguf
from treadle.models.rope import FREQUENCY_TENSOR, Rope, gguf_rope
from treadle.models.transforms import FLOATS, Form, Part, arrange, check_invertible, invert
from treadle.plan.ir import Container, DType, WeightBinding

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all)."""

FILE_TYPES: Final[Mapping[DType, int]] = {
    DType.F32: 0,
    DType.F16: 1,
    DType.Q4_0: 2,
    DType.Q4_1: 3,
    DType.Q8_0: 7,
    DType.Q5_0: 8,
    DType.Q5_1: 9,
    DType.Q2_K: 10,
    DType.Q3_K: 12,
    DType.Q4_K: 15,
    DType.Q5_K: 17,
    DType.Q6_K: 18,
    DType.IQ4_NL: 25,
    DType.BF16: 32,
    DType.IQ4_XS: 30,
    DType.MXFP4: 38,
}
"""general.file_type (llama.cpp's llama_ftype)."""
_OF_THE_FILE: Final = (
    "general.architecture",
    "general.alignment",
    "general.file_type",
    "general.quantization_version",
)
"""Metadata that is written anew."""


class Written(NamedTuple):
    """What an export wrote. `types`: name of a type -> how many tensors have it; `nbytes`: of all tensors."""

    types: dict[str, int]
    nbytes: int


class _Tensor(NamedTuple):
    info: TensorInfo
    make: Callable[[], NDArray[np.uint8]]


def export(
    checkpoint: Checkpoint,
    quantisation: Quantisation,
    target: Path,
    *,
    allow_requantize: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Writes the model with its matrices as `quantisation` says and its vectors, biases and routers as f32.

    `allow_requantize`: take matrices that are stored below q8_0. Raises UnsupportedModel or InvalidWeights naming what
    cannot be written, before anything is; OSError.
    """
    bindings = _bindings(checkpoint)
    tensors = [_tensor(checkpoint, b, quantisation, allow_requantize) for b in bindings if b.generator is None]
    if isinstance(checkpoint.tensors, GGUFFile):
        writer, extra = _copied(checkpoint.tensors, {tensor.info.name for tensor in tensors})
    else:
        writer, extra = _converted(checkpoint, tensors)
    writer.add("general.quantization_version", 2)
    writer.add("general.file_type", FILE_TYPES[quantisation.dtype])
    for info, make in (*extra, *tensors):
        writer.add_made(info.name, make, info.dtype, info.shape)
    writer.save(target, progress)
    infos = [tensor.info for tensor in (*extra, *tensors)]
    counts = {info.dtype: sum(other.dtype == info.dtype for other in infos) for info in infos}
    return Written(counts, sum(info.nbytes for info in infos))


def _bindings(checkpoint: Checkpoint) -> tuple[WeightBinding, ...]:
    """Every weight of the model once."""
    stages = checkpoint.compile().stages()
    return tuple({binding.name: binding for stage in stages for binding in stage.weight_bindings}.values())


def _info(name: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(name, dtype, shape, 0, tensor_nbytes(dtype, shape))


def _tensor(
    checkpoint: Checkpoint, binding: WeightBinding, quantisation: Quantisation, allow_requantize: bool
) -> _Tensor:
    """The tensor that GGUF keeps a weight in: the weight with that door's transforms undone."""
    sources = [source for source in binding.sources if source.container is Container.GGUF]
    if len(sources) != 1 or len(sources[0].tensors) != 1:
        raise UnsupportedModel(f"weight {binding.name}: GGUF keeps it in no tensor of its own; it cannot be written")
    (source,) = sources
    for transform in source.transforms:
        check_invertible(transform, f"weight {binding.name}")
    stored = checkpoint.weights.dtype(binding)
    vector = is_exact(binding.name, binding.shape)
    dtype = DType.F32 if vector else quantisation.type_of(binding.name, binding.shape, stored)
    if dtype is not stored and stored not in (*FLOATS, DType.Q8_0) and not allow_requantize:
        raise UnsupportedModel(
            f"weight {binding.name} is {stored.name.lower()} already: quantising it again loses more than once; "
            "start from a float or q8_0 model, or allow it (--allow-requantize)"
        )

    def make() -> NDArray[np.uint8]:
        view = checkpoint.weights.load(binding)
        form = Form(view.dtype, view.shape)
        part = Part(form, arrange(form, np.ascontiguousarray(view.data).reshape(-1)))
        for transform in reversed(source.transforms):
            part = invert(transform, part)
        made = part.data if dtype is stored else _encoded(part, dtype, quantisation, source.tensors[0])
        checkpoint.weights.release(binding)
        return made.reshape(-1)

    return _Tensor(_info(source.tensors[0], dtype.name.lower(), binding.shape), make)


def _encoded(part: Part, dtype: DType, quantisation: Quantisation, name: str) -> NDArray[np.uint8]:
    if len(part.form.shape) == 1:
        values = dequantise(part.data.reshape(-1), part.form.dtype.name.lower(), part.form.shape)
        return quantise(values, dtype.name.lower())
    try:
        return quantisation.encoded(part, dtype)
    except InvalidWeights as error:
        raise InvalidWeights(f"tensor {name}: {error}") from None


def _copied(source: GGUFFile, written: Collection[str]) -> tuple[GGUFWriter, list[_Tensor]]:
    """A file with the source's metadata, and its tensors that are no weights, such as a rope's divisors."""
    writer = GGUFWriter(source.architecture, source.alignment)
    for key in source.metadata:
        if key not in _OF_THE_FILE:
            writer.add_encoded(key, source.encoded(key))
    return writer, [_raw(source, name) for name in source.tensors if name not in written]


def _raw(source: GGUFFile, name: str) -> _Tensor:
    info = source.info(name)
    return _Tensor(_info(name, info.dtype, info.shape), lambda: source.raw(name))


def _converted(checkpoint: Checkpoint, tensors: Iterable[_Tensor]) -> tuple[GGUFWriter, list[_Tensor]]:
    """A file with a Hugging Face config and tokenizer as metadata, and the tensor of rope divisors if there is one."""
    config, path = checkpoint.config, checkpoint.path
    architecture = config.GGUF_ARCHITECTURE
    if architecture is None or not isinstance(config, BaseDecoderConfig) or config.rope is None:
        raise UnsupportedModel(f"{path}: model_type {config.MODEL_TYPE!r} has no GGUF writer yet")
    if not (path / "tokenizer.json").is_file():
        raise UnsupportedModel(f"{path}: no tokenizer.json, from which a GGUF file's tokenizer is made")
    keys, divisors = _config_keys(config, config.rope)
    metadata = {f"{architecture}.{key}": value for key, value in keys.items()}
    extra: list[_Tensor] = []
    if divisors is not None:
        raw = quantise(divisors, "f32")
        extra.append(_Tensor(_info(FREQUENCY_TENSOR, "f32", divisors.shape), lambda: raw))
    infos = {tensor.info.name: tensor.info for tensor in (*extra, *tensors)}
    _check_read_back(config, architecture, metadata, infos, divisors)
    check_loadable(architecture, infos)
    writer = GGUFWriter(architecture)
    writer.add("general.type", "model")
    writer.add("general.name", path.resolve().name)
    for key, value in {**metadata, **tokenizer_metadata(path, config.vocab_size)}.items():
        writer.add(key, value)
    return writer, extra


def _config_keys(config: BaseDecoderConfig, rope: Rope) -> tuple[dict[str, Metadata], NDArray[np.float32] | None]:
    """Metadata behind the architecture's prefix; the rest is `gguf_rope`'s."""
    keys: dict[str, Metadata] = {"vocab_size": config.vocab_size}
    keys |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    for field in dataclasses.fields(config):
        declared: Declared = field.metadata["declared"]
        value = getattr(config, field.name)
        if declared.gguf is not None and value is not None:
            keys[declared.gguf] = value
    of_rope, divisors = gguf_rope(rope)
    return keys | of_rope, divisors


def _check_read_back(
    config: Config,
    architecture: str,
    metadata: Mapping[str, Metadata],
    infos: Mapping[str, TensorInfo],
    divisors: NDArray[np.float32] | None,
) -> None:
    """Raises UnsupportedModel naming a field that a reader of the file would see otherwise."""
    known = {"general.architecture": architecture, **metadata}
    values_of = None if divisors is None else lambda name: divisors
    family = family_of_gguf(architecture, "the GGUF file", metadata=known)
    read = family.config.read(Keys.of_gguf(known, infos, "the GGUF file", values_of))
    defaults = {field.name: field.metadata["declared"].default for field in dataclasses.fields(read)}
    for name in defaults | _fields(config):
        wanted = getattr(config, name, defaults.get(name))
        found = getattr(read, name, None)
        if wanted != found:
            raise UnsupportedModel(f"{name}: the model has {brief(wanted)}, a GGUF file would say {brief(found)}")


def _fields(config: Config) -> dict[str, object]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
