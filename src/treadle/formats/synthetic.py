"""Tensors without a file: seeded random blocks that are valid in their type, made when they are asked for.

A tensor's values have about mean 0 and standard deviation 1 / sqrt(columns), so that layers keep the size of what goes
through them; a vector is all ones, or minus ones where it holds rates of decay. Block layouts are those of ggml
(ggml-common.h).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from treadle.errors import InvalidWeights, UnsupportedModel
from treadle.formats.mapped import Bytes, MappedFile
from treadle.formats.tensors import BLOCK_SIZES, Container, TensorInfo, tensor_nbytes

__all__ = ["RANDOM_TYPES", "SyntheticTensors", "random_tensor"]


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Of a block type whose other bytes may be any: ``scale`` is the byte of its f16 scale.

    ``spread``: the standard deviation of values whose scale is 1. ``minimum``: the byte of the f16 that is added
    (``centre`` negative) or subtracted, ``centre`` scales in size, so that the mean is 0.
    """

    scale: int
    spread: float
    minimum: int | None = None
    centre: float = 0.0


_BLOCKS: Mapping[str, _Blocks] = {
    "q4_0": _Blocks(0, 4.61),
    "q4_1": _Blocks(0, 4.61, 2, -7.5),
    "q5_0": _Blocks(0, 9.23),
    "q5_1": _Blocks(0, 9.23, 2, -15.5),
    "q8_0": _Blocks(0, 73.9),
    "q2_k": _Blocks(80, 13.9, 82, 1.5),
    "q3_k": _Blocks(108, 43.3),
    "q4_k": _Blocks(0, 258.0, 2, 7.5),
    "q5_k": _Blocks(0, 527.0, 2, 15.5),
    "q6_k": _Blocks(208, 1366.0),
    "iq4_nl": _Blocks(0, 68.9),
    "iq4_xs": _Blocks(0, 1273.0),
}
_MXFP4_SPREAD = 2.93
# name -> (unsigned type, bits of the mantissa, bias of the exponent)
_FLOATS: Mapping[str, tuple[type[np.uint32] | type[np.uint16], int, int]] = {
    "f32": (np.uint32, 23, 127),
    "bf16": (np.uint16, 7, 127),
    "f16": (np.uint16, 10, 15),
}
_FLOAT_SPREAD = math.sqrt(7 / 3)  # of a mantissa in [1, 2) with either sign
DECAYS = "ssm_a"
"""Vectors of rates at which a state decays: below 0."""
RANDOM_TYPES = (*_FLOATS, *_BLOCKS, "mxfp4")


def random_tensor(name: str, dtype: str, shape: tuple[int, ...]) -> Bytes:
    """The tensor's bytes, u8 [nbytes]: a function of the arguments alone. Raises UnsupportedModel, InvalidWeights."""
    nbytes = tensor_nbytes(dtype, shape)
    if len(shape) == 1 or 1 in shape:
        if dtype != "f32":
            raise UnsupportedModel(f"tensor {name}: a synthetic vector is f32, not {dtype}")
        return np.full(shape, -1.0 if name.endswith(DECAYS) else 1.0, "<f4").reshape(-1).view(np.uint8)
    generator = np.random.PCG64(int.from_bytes(hashlib.sha256(f"{name} {dtype} {shape}".encode()).digest()[:16], "big"))
    raw = generator.random_raw(-(-nbytes // 8)).view(np.uint8)[:nbytes]
    deviation = shape[-1] ** -0.5
    if dtype in _FLOATS:
        _set_exponents(raw, dtype, deviation)
    elif dtype == "mxfp4":
        raw.reshape(-1, BLOCK_SIZES[dtype][1])[:, 0] = 127 + round(math.log2(deviation / _MXFP4_SPREAD))
    elif dtype in _BLOCKS:
        _set_scales(raw, dtype, deviation)
    else:
        raise UnsupportedModel(f"tensor type {dtype!r} cannot be made up; known: {', '.join(RANDOM_TYPES)}")
    return raw


def _set_exponents(raw: Bytes, dtype: str, deviation: float) -> None:
    """Keeps sign and mantissa, sets one exponent: random bits as they are would hold NaN and infinity."""
    word, mantissa, bias = _FLOATS[dtype]
    words: npt.NDArray[Any] = raw.view(word)
    exponent = bias + round(math.log2(deviation / _FLOAT_SPREAD))
    kept = word(1 << (8 * words.itemsize - 1) | (1 << mantissa) - 1)
    np.bitwise_or(words & kept, word(exponent << mantissa), out=words)


def _set_scales(raw: Bytes, dtype: str, deviation: float) -> None:
    """Scales between 0.75 and 1.25 times the mean one; a q8_0 quant of -128, which no encoder makes, becomes -127."""
    form = _BLOCKS[dtype]
    blocks = raw.reshape(-1, BLOCK_SIZES[dtype][1])
    if dtype == "q8_0":
        quants = blocks[:, 2:].view(np.int8)
        np.maximum(quants, -127, out=quants)
    mean = np.float32(deviation / form.spread)
    scales = mean * (np.float32(0.75) + blocks[:, form.scale].astype(np.float32) / np.float32(512))
    blocks[:, form.scale : form.scale + 2] = _f16(scales)
    if form.minimum is not None:
        blocks[:, form.minimum : form.minimum + 2] = _f16(scales * np.float32(form.centre))


def _f16(values: npt.NDArray[np.float32]) -> Bytes:
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


class SyntheticTensors:
    """A tensor container that holds only what its tensors are; see `TensorSource`. ``metadata`` as of a GGUF file."""

    def __init__(self, metadata: Mapping[str, object], tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """``tensors``: name -> (type, shape). Raises InvalidWeights for a shape that is no whole number of blocks."""
        self.metadata = metadata
        self.tensors = {
            name: TensorInfo(name, dtype, shape, 0, tensor_nbytes(dtype, shape))
            for name, (dtype, shape) in tensors.items()
        }

    @property
    def architecture(self) -> object:
        return self.metadata.get("general.architecture")

    @property
    def container(self) -> Container:
        return "gguf"

    @property
    def files(self) -> tuple[MappedFile, ...]:
        return ()

    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise InvalidWeights(f"no tensor {name!r}")
        return self.tensors[name]

    def raw(self, name: str) -> Bytes:
        """Makes the bytes anew each time, the same ones."""
        info = self.info(name)
        return random_tensor(name, info.dtype, info.shape)

    def drop(self, name: str) -> None:
        self.info(name)

    def close(self) -> None:
        pass
