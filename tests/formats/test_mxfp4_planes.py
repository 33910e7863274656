"""mxfp4 planes against transformers' own decoder, and what does not fit refused by name."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from treadle.errors import InvalidWeights
from treadle.formats.mxfp4_planes import join_planes
from treadle.formats.safetensors import SafetensorsFile
from treadle.formats.tensors import dequantise


def planes(rng, *shape):
    """Random codes and scales of [..., cols]."""
    *outer, cols = shape
    codes = rng.integers(0, 256, (*outer, cols // 32, 16), dtype=np.uint8)
    return codes, rng.integers(118, 130, (*outer, cols // 32), dtype=np.uint8)


def opened(tmp_path, **tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    return join_planes(SafetensorsFile.open(tmp_path))


def test_values_are_those_of_transformers(tmp_path):
    codes, scales = planes(np.random.default_rng(3), 3, 10, 96)
    source = opened(tmp_path, w_blocks=codes, w_scales=scales, other=np.ones(3, np.float32))
    assert sorted(source.names()) == ["other", "w"]
    info = source.info("w")
    assert (info.dtype, info.shape) == ("mxfp4", (3, 10, 96))
    found = dequantise(source.raw("w"), info.dtype, info.shape)
    expected = convert_moe_packed_tensors(torch.from_numpy(codes), torch.from_numpy(scales), dtype=torch.float32)
    np.testing.assert_array_equal(found, expected.numpy().swapaxes(1, 2))
    source.drop("w")
    source.drop("other")
    np.testing.assert_array_equal(dequantise(source.raw("w"), info.dtype, info.shape), found)


def test_a_source_without_planes_stays_itself(tmp_path):
    save_file({"w_blocks": np.ones((2, 16), np.float32), "w_scales": np.ones(2, np.uint8)}, tmp_path / "a.safetensors")
    source = SafetensorsFile.open(tmp_path / "a.safetensors")
    assert join_planes(source) is source


def test_planes_that_do_not_fit_are_refused(tmp_path):
    codes, scales = planes(np.random.default_rng(3), 4, 64)
    with pytest.raises(InvalidWeights, match=r"w_blocks u8 \[4, 2, 16\] and w_scales u8 \[4, 1\]"):
        opened(tmp_path, w_blocks=codes, w_scales=scales[:, :1])
    with pytest.raises(InvalidWeights, match="w_scales f32"):
        opened(tmp_path, w_blocks=codes, w_scales=scales.astype(np.float32))
    with pytest.raises(InvalidWeights, match="whole and as planes"):
        opened(tmp_path, w_blocks=codes, w_scales=scales, w=np.ones(3, np.float32))
