"""Weight transforms against the same cut made on values."""

import gguf
import numpy as np
import pytest

from treadle.errors import InvalidWeights
from treadle.formats.tensors import dequantise, quantise
from treadle.models.transforms import FLOATS, Form, Part, apply, arrange, outcome
from treadle.plan.ir import DType, Transform, TransformKind

K = TransformKind


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def part(array, dtype):
    form = Form(dtype, array.shape)
    return Part(form, arrange(form, quantise(array, dtype.name.lower())))


def decoded(found):
    raw = np.ascontiguousarray(found.data).reshape(-1)
    return dequantise(raw, found.form.dtype.name.lower(), found.form.shape)


def transformed(kind, args, arrays, dtype):
    parts = apply(Transform(kind, args), [part(array, dtype) for array in arrays])
    return [decoded(found) for found in parts]


def stored(array, dtype):
    """The values that storing as `dtype` leaves."""
    return dequantise(quantise(array, dtype.name.lower()), dtype.name.lower(), array.shape)


def llama_cpp_permute(weights, heads):
    """LlamaModel.permute of convert_hf_to_gguf.py."""
    split = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return split.swapaxes(1, 2).reshape(weights.shape)


TYPES = [DType.F32, DType.F16, DType.BF16, DType.Q8_0, DType.Q4_0, DType.Q4_1]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("heads", [1, 3])
def test_rope_rows_return_to_their_places(dtype, heads):
    original = values(heads * 8, 64)
    (found,) = transformed(K.ROPE_ROWS_FROM_INTERLEAVED, (heads,), [llama_cpp_permute(original, heads)], dtype)
    np.testing.assert_array_equal(found, stored(original, dtype))


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
def test_rope_rows_of_a_bias(dtype):
    original = values(24)
    (found,) = transformed(K.ROPE_ROWS_FROM_INTERLEAVED, (3,), [llama_cpp_permute(original, 3)], dtype)
    np.testing.assert_array_equal(found, stored(original, dtype))


CUTS = [
    (K.SLICE_ROWS, (2, 7), lambda a: a[2:7]),
    (K.STRIDE_ROWS, (1, 2), lambda a: a[1::2]),
    (K.SLICE_HEAD_ROWS, (3, 1, 3), lambda a: a.reshape(3, 4, -1)[:, 1:3].reshape(6, -1)),
    (
        K.REGROUP_HEAD_ROWS,
        (3, 1, 1, 2),
        lambda a: np.concatenate([part.reshape(-1, 64) for part in np.split(a.reshape(3, 4, 64), [1, 2], axis=1)]),
    ),
    (K.RESHAPE, (6, 2, 64), lambda a: a.reshape(6, 2, 64)),
    (K.RESHAPE, (24, 32), lambda a: a.reshape(24, 32)),
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("kind", "args", "cut"), CUTS)
def test_cuts_keep_stored_values(kind, args, cut, dtype):
    original = values(12, 64)
    (found,) = transformed(kind, args, [original], dtype)
    np.testing.assert_array_equal(found, cut(stored(original, dtype)))


@pytest.mark.parametrize("dtype", TYPES)
def test_joins(dtype):
    a, b = values(3, 64), values(3, 64, seed=1)
    (joined,) = transformed(K.CONCAT_ROWS, (), [a, b, a], dtype)
    np.testing.assert_array_equal(joined, np.concatenate([stored(x, dtype) for x in (a, b, a)]))
    (stacked,) = transformed(K.STACK, (), [a, b], dtype)
    np.testing.assert_array_equal(stacked, np.stack([stored(a, dtype), stored(b, dtype)]))
    experts = values(4, 6, 32)
    (found,) = transformed(K.SLICE_FIRST, (2, 5), [experts], dtype)
    np.testing.assert_array_equal(found, stored(experts, dtype)[:, 2:5])


@pytest.mark.parametrize("dtype", TYPES)
def test_parts_of_heads_join_turned(dtype):
    """llama.cpp's split of kv_b_proj: each head's key part turned, its value part as it is."""
    heads, above, below, cols = 3, 32, 16, 64
    keys, below_rows = values(heads, cols, above), values(heads, below, cols, seed=1)
    (part_found,) = apply(Transform(K.JOIN_TURNED_HEADS), [part(keys, dtype), part(below_rows, dtype)])
    assert part_found.form == Form(dtype if dtype in FLOATS else DType.F32, (heads * (above + below), cols))
    expected = np.concatenate([stored(keys, dtype).transpose(0, 2, 1), stored(below_rows, dtype)], axis=1)
    np.testing.assert_array_equal(decoded(part_found), expected.reshape(-1, cols))


def test_vectors_join_and_slice():
    a, b = values(5), values(5, seed=1)
    (joined,) = transformed(K.CONCAT_ROWS, (), [a, b], DType.F16)
    np.testing.assert_array_equal(joined, np.concatenate([a, b]).astype(np.float16))
    (sliced,) = transformed(K.SLICE_ROWS, (1, 3), [a], DType.F32)
    np.testing.assert_array_equal(sliced, a[1:3])
    (stacked,) = transformed(K.STACK, (), [a, b], DType.F32)
    np.testing.assert_array_equal(stacked, np.stack([a, b]))


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
def test_values_are_computed_in_f32(dtype):
    original = values(4, 6)
    (turned,) = transformed(K.TRANSPOSE, (), [original], dtype)
    np.testing.assert_array_equal(turned, stored(original, dtype).T)
    (found,) = apply(Transform(K.NEGATIVE_EXP), [part(original, dtype)])
    assert found.form.dtype is DType.F32
    np.testing.assert_allclose(decoded(found), -np.exp(stored(original, dtype)))
    (found,) = apply(Transform(K.ADD_CONSTANT, (-1,)), [part(original[0], dtype)])
    np.testing.assert_array_equal(decoded(found), stored(original[0], dtype) - np.float32(1))


def test_transforms_apply_in_order():
    fused = values(12, 32)
    parts = [part(fused, DType.Q8_0)]
    for transform in (Transform(K.SLICE_ROWS, (4, 12)), Transform(K.ROPE_ROWS_FROM_INTERLEAVED, (2,))):
        parts = apply(transform, parts)
    halves = gguf.quants.dequantize(
        gguf.quants.quantize(fused, gguf.GGMLQuantizationType.Q8_0)[4:12], gguf.GGMLQuantizationType.Q8_0
    )
    expected = halves.reshape(2, 2, 2, 32).swapaxes(1, 2).reshape(8, 32)
    np.testing.assert_array_equal(decoded(parts[0]), expected)


@pytest.mark.parametrize(
    ("kind", "args", "forms"),
    [
        (K.ROPE_ROWS_FROM_INTERLEAVED, (3,), [(10, 32)]),
        (K.SLICE_ROWS, (4, 11), [(10, 32)]),
        (K.STRIDE_ROWS, (0, 3), [(10, 32)]),
        (K.SLICE_HEAD_ROWS, (3, 0, 1), [(10, 32)]),
        (K.SLICE_HEAD_ROWS, (2, 0, 6), [(10, 32)]),
        (K.REGROUP_HEAD_ROWS, (2, 1, 2), [(10, 32)]),
        (K.SLICE_FIRST, (0, 1), [(10, 32)]),
        (K.CONCAT_ROWS, (), [(10, 32), (10, 64)]),
        (K.STACK, (), [(10, 32), (11, 32)]),
        (K.RESHAPE, (10, 31), [(10, 32)]),
        (K.RESHAPE, (20, 16), [(10, 32)]),
        (K.TRANSPOSE, (), [(10, 32)]),
        (K.NEGATIVE_EXP, (), [(10, 32)]),
        (K.JOIN_TURNED_HEADS, (), [(2, 32, 32)]),
        (K.JOIN_TURNED_HEADS, (), [(2, 32, 32), (64, 32)]),
        (K.JOIN_TURNED_HEADS, (), [(2, 32, 32), (2, 16, 64)]),
    ],
)
def test_what_does_not_apply_is_refused(kind, args, forms):
    with pytest.raises(InvalidWeights):
        outcome(Transform(kind, args), [Form(DType.Q4_0, shape) for shape in forms])


ANY_ARGS = {
    K.RESHAPE: (2, 32),
    K.SLICE_FIRST: (0, 1),
    K.SLICE_ROWS: (0, 1),
    K.STRIDE_ROWS: (0, 1),
    K.SLICE_HEAD_ROWS: (1, 0, 1),
    K.REGROUP_HEAD_ROWS: (1, 1, 1),
}


@pytest.mark.parametrize("kind", K)
def test_every_kind_has_a_rule(kind):
    form = Form(DType.F32, (2, 32))
    forms = {K.SLICE_FIRST: [Form(DType.F32, (1, 2, 32))], K.JOIN_TURNED_HEADS: [Form(DType.F32, (1, 2, 2))] * 2}
    assert outcome(Transform(kind, ANY_ARGS.get(kind, (1,))), forms.get(kind, [form]))
