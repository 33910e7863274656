"""Made-up tensors: valid in every type by the gguf package's own decoder, of the wanted size, repeatable."""

import gguf
import numpy as np
import pytest

from treadle.errors import InvalidWeights, UnsupportedModel
from treadle.formats.synthetic import RANDOM_TYPES, SyntheticTensors, random_tensor
from treadle.formats.tensors import tensor_nbytes

SHAPE = (96, 1024)


@pytest.mark.parametrize("dtype", RANDOM_TYPES)
def test_values_are_finite_with_mean_0_and_variance_one_over_columns(dtype):
    raw = random_tensor("w", dtype, SHAPE)
    assert raw.dtype == np.uint8
    assert raw.shape == (tensor_nbytes(dtype, SHAPE),)
    values = gguf.quants.dequantize(raw.reshape(SHAPE[0], -1), gguf.GGMLQuantizationType[dtype.upper()])
    assert values.shape == SHAPE
    assert np.isfinite(values).all()
    assert len(np.unique(values)) > 8
    assert abs(values.mean()) < 0.2 * values.std()
    assert 0.6 < values.std() * SHAPE[1] ** 0.5 < 1.5


@pytest.mark.parametrize("dtype", ["f32", "q4_0", "mxfp4"])
def test_the_same_name_gives_the_same_bytes_and_another_name_others(dtype):
    first = random_tensor("a", dtype, SHAPE)
    assert np.array_equal(first, random_tensor("a", dtype, SHAPE))
    assert not np.array_equal(first, random_tensor("b", dtype, SHAPE))


def test_q8_0_keeps_to_the_quants_that_encoders_make():
    quants = random_tensor("w", "q8_0", SHAPE).reshape(-1, 34)[:, 2:].view(np.int8)
    assert quants.min() == -127
    assert quants.max() == 127


def test_a_vector_is_all_ones():
    assert np.array_equal(random_tensor("norm", "f32", (7,)).view("<f4"), np.ones(7, np.float32))
    with pytest.raises(UnsupportedModel, match="norm: a synthetic vector is f32, not q8_0"):
        random_tensor("norm", "q8_0", (32,))


def test_what_cannot_be_made_up_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match="'iq2_xs' cannot be made up; known: f32, bf16"):
        random_tensor("w", "iq2_xs", SHAPE)
    with pytest.raises(InvalidWeights, match="multiples of 256"):
        SyntheticTensors({}, {"w": ("q4_k", (4, 640))})
    with pytest.raises(InvalidWeights, match="no tensor 'x'"):
        SyntheticTensors({}, {"w": ("q8_0", (4, 64))}).raw("x")
