"""What every weight container offers: tensor infos, zero-copy bytes, and the block formats' sizes and values.

Dtypes are canonical lower-case names ("f32", "bf16", "q4_1", "q6_k", ...). Shapes are row-major, [out, in], whatever
the container's own order. Block layouts are those of ggml (ggml-common.h, ggml-quants.c).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
import numpy.typing as npt

from treadle.errors import InvalidWeights, UnsupportedModel
from treadle.formats.mapped import Bytes, MappedFile

__all__ = [
    "BLOCK_SIZES",
    "PLAIN_DTYPES",
    "Container",
    "TensorInfo",
    "TensorSource",
    "dequantise",
    "plain_array",
    "quantise",
    "tensor_nbytes",
]

Container = Literal["gguf", "safetensors"]
F32Array = npt.NDArray[np.float32]

# name -> NumPy dtype, for the formats whose elements stand alone
PLAIN_DTYPES: dict[str, np.dtype[np.generic]] = {
    "f64": np.dtype("<f8"),
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "f8_e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "i8": np.dtype("i1"),
    "i16": np.dtype("<i2"),
    "i32": np.dtype("<i4"),
    "i64": np.dtype("<i8"),
    "u8": np.dtype("u1"),
    "u16": np.dtype("<u2"),
    "u32": np.dtype("<u4"),
    "u64": np.dtype("<u8"),
    "bool": np.dtype("?"),
}

# name -> (elements a block, bytes a block); blocks run along the last axis
BLOCK_SIZES: dict[str, tuple[int, int]] = {
    **{name: (1, dtype.itemsize) for name, dtype in PLAIN_DTYPES.items()},
    "q1_0": (128, 18),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "q8_0": (32, 34),
    "q8_1": (32, 36),
    "q2_k": (256, 84),
    "q3_k": (256, 110),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
    "q8_k": (256, 292),
    "iq1_s": (256, 50),
    "iq1_m": (256, 56),
    "iq2_xxs": (256, 66),
    "iq2_xs": (256, 74),
    "iq2_s": (256, 82),
    "iq3_xxs": (256, 98),
    "iq3_s": (256, 110),
    "iq4_nl": (32, 18),
    "iq4_xs": (256, 136),
    "tq1_0": (256, 54),
    "tq2_0": (256, 66),
    "mxfp4": (32, 17),
    "nvfp4": (64, 36),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a container: ``shape`` row-major, ``offset`` in bytes from the start of file number ``part``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    part: int = 0


@runtime_checkable
class TensorSource(Protocol):
    """A checked, mapped weight container. ``info``, ``raw`` and ``drop`` raise InvalidWeights for an unknown name."""

    @property
    def container(self) -> Container: ...

    @property
    def files(self) -> tuple[MappedFile, ...]:
        """The mapped files that hold the tensors."""
        ...

    def names(self) -> tuple[str, ...]: ...

    def info(self, name: str) -> TensorInfo: ...

    def raw(self, name: str) -> Bytes:
        """The tensor's bytes as stored: a read-only u8 array [nbytes] over the map, no copy."""
        ...

    def drop(self, name: str) -> None:
        """Give the tensor's file pages back to the system (after packing). The tensor stays readable."""
        ...

    def close(self) -> None: ...


def tensor_nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes that a tensor takes. Raises InvalidWeights if the last axis is not a whole number of blocks."""
    elements, size = _block(dtype)
    if shape and shape[-1] % elements:
        raise InvalidWeights(f"{dtype} needs a last axis in multiples of {elements}, found shape {tuple(shape)}")
    count = math.prod(shape)
    if count % elements:
        raise InvalidWeights(f"{dtype} has blocks of {elements} elements, found shape {tuple(shape)}")
    return count // elements * size


def plain_array(raw: Bytes, dtype: str, shape: Sequence[int]) -> npt.NDArray[np.generic]:
    """View the bytes of an unquantised tensor as an array of its own NumPy dtype (bf16 by ml_dtypes), no copy."""
    if dtype not in PLAIN_DTYPES:
        raise UnsupportedModel(f"tensor type {dtype!r} has no plain elements; dequantise it")
    _check_length(raw, dtype, shape)
    return raw.view(PLAIN_DTYPES[dtype]).reshape(shape)


def dequantise(raw: Bytes, dtype: str, shape: Sequence[int]) -> F32Array:
    """The values of a tensor as a new f32 array of ``shape``. Raises UnsupportedModel for a type without a decoder."""
    _check_length(raw, dtype, shape)
    if dtype in ("f32", "f16", "bf16"):
        return raw.view(PLAIN_DTYPES[dtype]).astype(np.float32).reshape(shape)
    if dtype not in _DECODERS:
        raise UnsupportedModel(f"tensor type {dtype!r}: no decoder; supported: f32, f16, bf16, {', '.join(_DECODERS)}")
    blocks = raw.reshape(-1, BLOCK_SIZES[dtype][1])
    return _DECODERS[dtype](blocks).reshape(shape)


def quantise(values: npt.ArrayLike, dtype: str) -> Bytes:
    """Encode an array [..., k] as ``dtype`` bytes [nbytes] with ggml's reference rounding (ggml-quants.c)."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    tensor_nbytes(dtype, array.shape)
    if dtype in ("f32", "f16", "bf16"):
        return np.frombuffer(array.astype(PLAIN_DTYPES[dtype]).tobytes(), dtype=np.uint8)
    if dtype not in _ENCODERS:
        raise UnsupportedModel(f"tensor type {dtype!r}: no encoder; supported: f32, f16, bf16, {', '.join(_ENCODERS)}")
    return _ENCODERS[dtype](array.reshape(-1, BLOCK_SIZES[dtype][0])).reshape(-1)


def _block(dtype: str) -> tuple[int, int]:
    if dtype not in BLOCK_SIZES:
        raise UnsupportedModel(f"unknown tensor type {dtype!r}")
    return BLOCK_SIZES[dtype]


def _check_length(raw: Bytes, dtype: str, shape: Sequence[int]) -> None:
    expected = tensor_nbytes(dtype, shape)
    if raw.size != expected:
        raise InvalidWeights(f"{dtype} of shape {tuple(shape)} takes {expected} bytes, found {raw.size}")


# Block codecs. `blocks` is u8 [n, bytes a block]; `x` is f32 [n, elements a block]; d and m are f16 in the file.


def _f16(blocks: Bytes, at: int) -> F32Array:
    """The f16 at byte ``at`` of every block, as f32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """[n, 16] bytes -> [n, 32] values: low nibbles are elements 0-15, high nibbles 16-31."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """32 flag bits from byte ``at``, element i from bit i, as [n, 32] values 0 or 16."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") * np.uint8(16)


def _decode_q8_0(blocks: Bytes) -> F32Array:
    return _f16(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


def _decode_q4_0(blocks: Bytes) -> F32Array:
    return _f16(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - np.float32(8))


def _decode_q4_1(blocks: Bytes) -> F32Array:
    return _f16(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _f16(blocks, 2)


def _decode_q5_0(blocks: Bytes) -> F32Array:
    values = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return _f16(blocks, 0) * (values.astype(np.float32) - np.float32(16))


def _decode_q5_1(blocks: Bytes) -> F32Array:
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return _f16(blocks, 0) * values.astype(np.float32) + _f16(blocks, 2)


def _by_run(scales: F32Array, codes: F32Array) -> F32Array:
    """scales [n, runs] times codes [n, elements], each scale for an equal run of elements."""
    n, runs = scales.shape
    return (scales[:, :, None] * codes.reshape(n, runs, -1)).reshape(n, -1)


def _fields(packed: Bytes, bits: int) -> Bytes:
    """[n, groups, bytes] -> [n, elements] of `bits` bits; in a group the lowest fields of all its bytes come first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = packed[:, :, None, :] >> shifts & np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed), -1)


def _scales_minima(packed: Bytes) -> tuple[F32Array, F32Array]:
    """12 bytes of Q4_K and Q5_K -> eight 6-bit scales and eight 6-bit minima, [n, 8] each."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _decode_q2_k(blocks: Bytes) -> F32Array:
    codes = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2).astype(np.float32)
    scales, minima = (part.astype(np.float32) for part in (blocks[:, :16] & 15, blocks[:, :16] >> 4))
    low = _by_run(_f16(blocks, 82) * minima, np.ones_like(codes))
    return _by_run(_f16(blocks, 80) * scales, codes) - low


def _decode_q3_k(blocks: Bytes) -> F32Array:
    codes = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2) | _fields(blocks[:, None, :32], 1) << 2
    low = np.concatenate([blocks[:, 96:104] & 15, blocks[:, 96:104] >> 4], axis=1)
    high = np.concatenate([blocks[:, 104:108] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    scales = (low | high << 4).astype(np.float32) - np.float32(32)
    return _by_run(_f16(blocks, 108) * scales, codes.astype(np.float32) - np.float32(4))


def _decode_q4_k(blocks: Bytes) -> F32Array:
    codes = _fields(blocks[:, 16:].reshape(-1, 4, 32), 4)
    return _with_minima(blocks, codes)


def _decode_q5_k(blocks: Bytes) -> F32Array:
    codes = _fields(blocks[:, 48:].reshape(-1, 4, 32), 4) | _fields(blocks[:, None, 16:48], 1) * np.uint8(16)
    return _with_minima(blocks, codes)


def _with_minima(blocks: Bytes, codes: Bytes) -> F32Array:
    scales, minima = _scales_minima(blocks[:, 4:16])
    low = _by_run(_f16(blocks, 2) * minima, np.ones(codes.shape, np.float32))
    return _by_run(_f16(blocks, 0) * scales, codes.astype(np.float32)) - low


def _decode_q6_k(blocks: Bytes) -> F32Array:
    low = _fields(blocks[:, :128].reshape(-1, 2, 64), 4)
    high = _fields(blocks[:, 128:192].reshape(-1, 2, 32), 2)
    codes = (low | high << 4).astype(np.float32) - np.float32(32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return _by_run(_f16(blocks, 208) * scales, codes)


_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _decode_iq4_nl(blocks: Bytes) -> F32Array:
    return _f16(blocks, 0) * _IQ4[_nibbles(blocks[:, 2:])]


def _decode_iq4_xs(blocks: Bytes) -> F32Array:
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = np.concatenate([blocks[:, at : at + 1] >> np.arange(0, 8, 2, dtype=np.uint8) & 3 for at in (2, 3)], axis=1)
    scales = (low | high << 4).astype(np.float32) - np.float32(32)
    codes = _nibbles(np.ascontiguousarray(blocks[:, 8:]).reshape(-1, 16)).reshape(-1, 256)
    return _by_run(_f16(blocks, 0) * scales, _IQ4[codes])


def _decode_mxfp4(blocks: Bytes) -> F32Array:
    scales = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return scales * _E2M1_DOUBLED[_nibbles(blocks[:, 1:])]


def _inverse(d: F32Array) -> F32Array:
    """1/d, and 0 where d is 0 (an all-zero or constant block) or so small that 1/d is no f32."""
    with np.errstate(over="ignore"):
        inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    return np.where(np.isinf(inverse), np.float32(0), inverse)


def _f16_bytes(d: F32Array) -> Bytes:
    return d.astype("<f2").view(np.uint8)


def _encode_q8_0(x: F32Array) -> Bytes:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    q = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled)  # round half away from zero, as roundf
    return np.concatenate([_f16_bytes(d), q.astype(np.int8).view(np.uint8)], axis=1)


def _encode_q4_0(x: F32Array) -> Bytes:
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)  # largest magnitude, with its sign
    d = extreme / np.float32(-8)
    q = np.minimum(15, np.trunc(x * _inverse(d) + np.float32(8.5))).astype(np.uint8)
    return np.concatenate([_f16_bytes(d), q[:, :16] | q[:, 16:] << 4], axis=1)


def _encode_q4_1(x: F32Array) -> Bytes:
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(15)
    q = np.minimum(15, np.trunc((x - low) * _inverse(d) + np.float32(0.5))).astype(np.uint8)
    return np.concatenate([_f16_bytes(d), _f16_bytes(low), q[:, :16] | q[:, 16:] << 4], axis=1)


_DECODERS: dict[str, Callable[[Bytes], F32Array]] = {
    "q8_0": _decode_q8_0,
    "q4_0": _decode_q4_0,
    "q4_1": _decode_q4_1,
    "q5_0": _decode_q5_0,
    "q5_1": _decode_q5_1,
    "q2_k": _decode_q2_k,
    "q3_k": _decode_q3_k,
    "q4_k": _decode_q4_k,
    "q5_k": _decode_q5_k,
    "q6_k": _decode_q6_k,
    "iq4_nl": _decode_iq4_nl,
    "iq4_xs": _decode_iq4_xs,
    "mxfp4": _decode_mxfp4,
}
_ENCODERS: dict[str, Callable[[F32Array], Bytes]] = {
    "q8_0": _encode_q8_0,
    "q4_0": _encode_q4_0,
    "q4_1": _encode_q4_1,
}
