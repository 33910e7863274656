"""Block codecs and sizes against gguf-py."""

from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from treadle.errors import InvalidWeights, UnsupportedModel
from treadle.formats.tensors import BLOCK_SIZES, dequantise, plain_array, quantise, tensor_nbytes

DECODED = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]
DECODED += ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4"]
ENCODED = ["f16", "bf16", "q8_0", "q4_0", "q4_1"]

# nothing so small that its scale would be subnormal: there ggml's own result is undefined
elements = st.floats(-1e4, 1e4, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)
blocks = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.sampled_from([32, 64, 160])), elements=elements)


def kind(dtype: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[dtype.upper()]


def test_block_sizes() -> None:
    """gguf-py still has Q8_1 (never stored in files) with f32 scales; ggml-common.h has had two halves since 2024."""
    for ggml_type, sizes in gguf.GGML_QUANT_SIZES.items():
        if ggml_type.name != "Q8_1":
            assert BLOCK_SIZES[ggml_type.name.lower()] == sizes


@pytest.mark.parametrize("dtype", DECODED)
def test_dequantise_any_bytes(dtype: str) -> None:
    """Every bit pattern of the quants, with scales of any size."""
    elements, size = BLOCK_SIZES[dtype]
    raw = np.random.default_rng(1).integers(0, 256, 64 * 256 // elements * size, dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw.reshape(64, -1), kind(dtype))
        np.testing.assert_array_equal(dequantise(raw, dtype, (64, 256)), expected)


@pytest.mark.parametrize("dtype", ENCODED)
@settings(max_examples=40)
@given(x=blocks)
def test_quantise(dtype: str, x: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        expected = gguf.quants.quantize(x, kind(dtype))
        assert np.array_equal(quantise(x, dtype), expected.reshape(-1).view(np.uint8))


@pytest.mark.parametrize(("dtype", "tolerance"), [("q8_0", 0.5 / 127), ("q4_0", 1 / 8), ("q4_1", 0.5 / 15 * 2)])
def test_error_bound(dtype: str, tolerance: float) -> None:
    x = np.random.default_rng(2).uniform(-1, 1, (64, 256)).astype(np.float32)
    error = np.abs(dequantise(quantise(x, dtype), dtype, x.shape) - x).max()
    assert error <= tolerance * 1.15  # the scale itself is rounded to f16


def test_constant_blocks() -> None:
    for value in (0.0, 2.0, -3.0):
        x = np.full((2, 32), value, np.float32)
        for dtype in ("q8_0", "q4_0", "q4_1"):
            np.testing.assert_allclose(dequantise(quantise(x, dtype), dtype, x.shape), x, rtol=1e-3)


def test_plain_array_is_a_view() -> None:
    raw = np.arange(24, dtype=np.uint8)
    view = plain_array(raw, "bf16", (3, 4))
    assert view.dtype == ml_dtypes.bfloat16
    assert np.shares_memory(view, raw)


def test_refusals() -> None:
    raw = np.zeros(18, np.uint8)
    with pytest.raises(InvalidWeights, match="multiples of 32"):
        tensor_nbytes("q4_0", (2, 16))
    with pytest.raises(InvalidWeights, match="takes 18 bytes, found 17"):
        dequantise(raw[:17], "q4_0", (32,))
    with pytest.raises(UnsupportedModel, match="iq2_xxs"):
        dequantise(np.zeros(66, np.uint8), "iq2_xxs", (256,))
    with pytest.raises(UnsupportedModel, match="q6_k"):
        quantise(np.zeros((1, 256)), "q6_k")
    with pytest.raises(UnsupportedModel, match="q4_0"):
        plain_array(raw, "q4_0", (32,))
    with pytest.raises(UnsupportedModel, match="nope"):
        tensor_nbytes("nope", (1,))
