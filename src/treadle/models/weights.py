"""A checkpoint as a plan's weight source: finds, checks and cuts tensors. Implements `plan.views.WeightSource`."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidWeights, UnsupportedModel
from treadle.formats.tensors import TensorInfo, TensorSource, dequantise
from treadle.models.compile import MATRIX_DTYPES
from treadle.models.generators import generate
from treadle.models.quantisation import Quantisation, is_exact
from treadle.models.transforms import FLOATS, Form, Part, apply, arrange, outcome
from treadle.plan.ir import Container, DType, Source, WeightBinding
from treadle.plan.views import TensorView


class CheckpointWeights:
    """The weights of one container. With a `quantisation` its matrices are encoded as they are loaded."""

    def __init__(self, tensors: TensorSource, where: str, quantisation: Quantisation | None = None) -> None:
        self._tensors = tensors
        self._quantisation = quantisation
        self._known = frozenset(tensors.names())
        self._container = Container.GGUF if tensors.container == "gguf" else Container.SAFETENSORS
        self._where = where

    def check(self, bindings: Iterable[WeightBinding], unused: tuple[str, ...] = ()) -> None:
        """Every binding is there, of the right shape and of a type it accepts, and no tensor is left over.

        `unused`: patterns of tensors that may be left over. Raises InvalidWeights or UnsupportedModel naming the
        tensor. Reads no tensor data.
        """
        wanted: set[str] = set()
        for binding in bindings:
            self.dtype(binding)
            source = self._source(binding)
            wanted.update(source.tensors if source is not None else ())
        for name in sorted(self._known - wanted):
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in unused):
                raise UnsupportedModel(f"{self._where}: tensor {name!r} has no place in this architecture")

    def dtype(self, binding: WeightBinding) -> DType:
        """dtype that `load` will return. Raises InvalidWeights (missing, misshaped) or UnsupportedModel (type)."""
        source = self._source(binding)
        if binding.generator is not None:
            for name in () if source is None else source.tensors:
                self._info(name, binding)
            return DType.F32
        assert source is not None
        infos = [self._info(name, binding) for name in source.tensors]
        forms = [_form(info) for info in infos]
        try:
            for transform in source.transforms:
                forms = outcome(transform, forms)
        except InvalidWeights as error:
            raise InvalidWeights(f"{self._where}: weight {binding.name} ({_listed(infos)}): {error}") from None
        if [form.shape for form in forms] != [binding.shape]:
            expected = list(binding.shape)
            raise InvalidWeights(
                f"{self._where}: weight {binding.name}: expected shape {expected}, found {_listed(infos)}"
            )
        dtype = self._quantised(binding, forms[0].dtype)
        if dtype not in binding.dtypes:
            expected_types = ", ".join(dtype.name.lower() for dtype in binding.dtypes)
            found = _listed(infos) if dtype is forms[0].dtype else dtype.name.lower()
            raise InvalidWeights(f"{self._where}: weight {binding.name}: expected type {expected_types}, found {found}")
        return dtype

    def _quantised(self, binding: WeightBinding, stored: DType) -> DType:
        """The type that a weight stored as `stored` is loaded as. Raises UnsupportedModel where it is quantised."""
        if self._quantisation is None or is_exact(binding.name, binding.shape):
            return stored
        if stored not in FLOATS:
            raise UnsupportedModel(
                f"{self._where}: weight {binding.name} is {stored.name.lower()} already: only f32, f16 and bf16 "
                "checkpoints are quantised on load; `treadle quantize` writes a file of another type"
            )
        return self._quantisation.type_of(binding.name, binding.shape, stored)

    def load(self, binding: WeightBinding) -> TensorView:
        """The logical weight; a view of the mapped file where no transform moves bytes. Raises as `dtype`."""
        dtype = self.dtype(binding)
        source = self._source(binding)
        if binding.generator is not None:
            values = generate(binding.generator, None if source is None else self.values(source.tensors[0]))
            if values.shape != binding.shape:
                raise InvalidWeights(
                    f"weight {binding.name}: expected shape {list(binding.shape)}, generated {list(values.shape)}"
                )
            return TensorView(DType.F32, binding.shape, values.view(np.uint8))
        assert source is not None
        parts = [self._part(name, binding) for name in source.tensors]
        for transform in source.transforms:
            parts = apply(transform, parts)
        (part,) = parts
        if dtype is not part.form.dtype:
            assert self._quantisation is not None
            try:
                return TensorView(dtype, binding.shape, self._quantisation.encoded(part, dtype))
            except InvalidWeights as error:
                raise InvalidWeights(f"{self._where}: weight {binding.name}: {error}") from None
        data = part.data.reshape(-1) if len(binding.shape) == 1 else part.data
        return TensorView(dtype, binding.shape, data)

    def release(self, binding: WeightBinding) -> None:
        """Give the file's pages back: the caller has its copy."""
        source = self._source(binding)
        for name in () if source is None else source.tensors:
            self._tensors.drop(name)

    def _source(self, binding: WeightBinding) -> Source | None:
        """Where this container keeps the weight; None for a generated one that reads no tensor."""
        found = [source for source in binding.sources if source.container == self._container]
        if not found and (binding.generator is None or binding.sources):
            kind = self._container.name.lower()
            raise InvalidWeights(f"{self._where}: weight {binding.name} has no tensor name for {kind}")
        return found[0] if found else None

    def _info(self, name: str, binding: WeightBinding) -> TensorInfo:
        if name not in self._known:
            raise InvalidWeights(f"{self._where}: tensor {name!r} is missing (weight {binding.name})")
        info = self._tensors.info(name)
        if info.dtype not in _READABLE:
            raise UnsupportedModel(
                f"{self._where}: tensor {name!r} has type {info.dtype}; supported: {', '.join(_READABLE)}"
            )
        return info

    def _part(self, name: str, binding: WeightBinding) -> Part:
        form = _form(self._info(name, binding))
        return Part(form, arrange(form, self._tensors.raw(name)))

    def values(self, name: str) -> NDArray[np.float32]:
        """Of a tensor, in its shape. Raises InvalidWeights, UnsupportedModel for a type without a decoder."""
        info = self._tensors.info(name)
        return dequantise(self._tensors.raw(name), info.dtype, info.shape)


_READABLE = tuple(dtype.name.lower() for dtype in MATRIX_DTYPES)


def _form(info: TensorInfo) -> Form:
    return Form(DType[info.dtype.upper()], info.shape)


def _listed(infos: list[TensorInfo]) -> str:
    return ", ".join(f"{info.name} {info.dtype} {list(info.shape)}" for info in infos)
