"""How logical weights are cut out of stored tensors: rows move as bytes, whatever their type.

A part's data is u8 [*shape[:-1], row bytes]; of a vector it is [elements, element bytes], so that its elements move as
rows do. Every transform says first what shape and type come out (`outcome`), then moves data (`apply`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidWeights, UnsupportedModel
from treadle.formats.tensors import BLOCK_SIZES, PLAIN_DTYPES, dequantise, plain_array
from treadle.plan.ir import DType, Transform, TransformKind

Bytes = NDArray[np.uint8]
Args = tuple[int, ...]
FLOATS: Final = (DType.F32, DType.F16, DType.BF16)


class Form(NamedTuple):
    """What a tensor is, without its data."""

    dtype: DType
    shape: tuple[int, ...]


class Part(NamedTuple):
    form: Form
    data: Bytes


class Rule(NamedTuple):
    outcome: Callable[[Args, list[Form]], list[Form]]
    move: Callable[[Args, list[Part]], list[Bytes]]


def arrange(form: Form, raw: Bytes) -> Bytes:
    """Stored bytes in the layout of a part."""
    elements, size = BLOCK_SIZES[form.dtype.name.lower()]
    if len(form.shape) == 1 and elements == 1:
        return raw.reshape(-1, size)
    return raw.reshape(*form.shape[:-1], form.shape[-1] // elements * size)


def outcome(transform: Transform, forms: list[Form]) -> list[Form]:
    """The forms after a transform. Raises InvalidWeights where it cannot apply."""
    return _RULES[transform.kind].outcome(transform.args, forms)


def apply(transform: Transform, parts: list[Part]) -> list[Part]:
    """The parts after a transform. Raises InvalidWeights where it cannot apply."""
    forms = outcome(transform, [part.form for part in parts])
    moved = _RULES[transform.kind].move(transform.args, parts)
    return [
        Part(form, arrange(form, np.ascontiguousarray(data).reshape(-1)))
        for form, data in zip(forms, moved, strict=True)
    ]


def check_invertible(transform: Transform, where: str) -> None:
    """Raises UnsupportedModel for a transform that `invert` does not undo."""
    if transform.kind not in _INVERSES:
        raise UnsupportedModel(f"{where}: the transform {transform.kind.name.lower()} cannot be undone")


def invert(transform: Transform, part: Part) -> Part:
    """The part that `apply` made this one of. Raises UnsupportedModel where there is no inverse."""
    check_invertible(transform, "a weight")
    moved = _INVERSES[transform.kind](transform.args, part)
    return Part(part.form, arrange(part.form, np.ascontiguousarray(moved).reshape(-1)))


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidWeights(message)


def _first_axis(form: Form, rows: int) -> Form:
    return Form(form.dtype, (rows, *form.shape[1:]))


def _whole_heads(args: Args, forms: list[Form]) -> list[Form]:
    (heads,) = args
    for form in forms:
        _need(form.shape[0] % (2 * heads) == 0, f"{form.shape[0]} rows are not {heads} heads of pairs")
    return forms


def _pair_rows(args: Args, parts: list[Part]) -> list[Bytes]:
    """Row (head, pair, half) -> (head, half, pair): the inverse of llama.cpp's LlamaModel.permute."""
    (heads,) = args
    return [part.data.reshape(heads, -1, 2, *part.data.shape[1:]).swapaxes(1, 2) for part in parts]


def _unpair_rows(args: Args, part: Part) -> Bytes:
    """Row (head, half, pair) -> (head, pair, half)."""
    (heads,) = args
    return part.data.reshape(heads, 2, -1, *part.data.shape[1:]).swapaxes(1, 2)


def _sliced(args: Args, forms: list[Form]) -> list[Form]:
    start, stop = args
    for form in forms:
        _need(0 <= start < stop <= form.shape[0], f"rows {start}..{stop} of a tensor of {form.shape[0]}")
    return [_first_axis(form, stop - start) for form in forms]


def _slice(args: Args, parts: list[Part]) -> list[Bytes]:
    return [part.data[args[0] : args[1]] for part in parts]


def _strided(args: Args, forms: list[Form]) -> list[Form]:
    start, step = args
    for form in forms:
        _need(0 <= start < step and form.shape[0] % step == 0, f"every {step}-th of {form.shape[0]} rows")
    return [_first_axis(form, form.shape[0] // step) for form in forms]


def _stride(args: Args, parts: list[Part]) -> list[Bytes]:
    return [part.data[args[0] :: args[1]] for part in parts]


def _sliced_heads(args: Args, forms: list[Form]) -> list[Form]:
    heads, start, stop = args
    for form in forms:
        _need(form.shape[0] % heads == 0, f"{form.shape[0]} rows are not {heads} heads")
        _need(0 <= start < stop <= form.shape[0] // heads, f"rows {start}..{stop} of heads of {form.shape[0] // heads}")
    return [_first_axis(form, heads * (stop - start)) for form in forms]


def _slice_heads(args: Args, parts: list[Part]) -> list[Bytes]:
    heads, start, stop = args
    return [part.data.reshape(heads, -1, *part.data.shape[1:])[:, start:stop] for part in parts]


def _regrouped(args: Args, forms: list[Form]) -> list[Form]:
    heads, *sizes = args
    for form in forms:
        _need(form.shape[0] == heads * sum(sizes), f"{form.shape[0]} rows are not {heads} heads of {sizes}")
    return forms


def _regroup(args: Args, parts: list[Part]) -> list[Bytes]:
    heads, *sizes = args
    ends = np.cumsum(sizes)[:-1]
    regrouped = []
    for part in parts:
        by_head = part.data.reshape(heads, -1, *part.data.shape[1:])
        regrouped.append(np.concatenate([piece.reshape(-1) for piece in np.split(by_head, ends, axis=1)]))
    return regrouped


def _sliced_first(args: Args, forms: list[Form]) -> list[Form]:
    start, stop = args
    for form in forms:
        _need(len(form.shape) == 3 and 0 <= start < stop <= form.shape[1], f"rows {start}..{stop} of {form.shape}")
    return [Form(form.dtype, (form.shape[0], stop - start, form.shape[2])) for form in forms]


def _slice_first(args: Args, parts: list[Part]) -> list[Bytes]:
    return [part.data[:, args[0] : args[1]] for part in parts]


def _concatenated(args: Args, forms: list[Form]) -> list[Form]:
    _need(len({(form.dtype, form.shape[1:]) for form in forms}) == 1, f"rows of {forms} do not join")
    return [_first_axis(forms[0], sum(form.shape[0] for form in forms))]


def _concatenate(args: Args, parts: list[Part]) -> list[Bytes]:
    return [np.concatenate([part.data for part in parts])]


def _stacked(args: Args, forms: list[Form]) -> list[Form]:
    _need(len(set(forms)) == 1, f"{forms} do not stack")
    return [Form(forms[0].dtype, (len(forms), *forms[0].shape))]


def _stack(args: Args, parts: list[Part]) -> list[Bytes]:
    return [np.stack([part.data for part in parts])]


def _reshaped(args: Args, forms: list[Form]) -> list[Form]:
    for form in forms:
        block, _ = BLOCK_SIZES[form.dtype.name.lower()]
        fits = np.prod(args) == np.prod(form.shape) and args[-1] % block == 0
        _need(bool(fits), f"{form.dtype.name.lower()} {form.shape} does not take the shape {args}")
    return [Form(form.dtype, args) for form in forms]


def _keep(args: Args, parts: list[Part]) -> list[Bytes]:
    return [part.data for part in parts]


def _transposed(args: Args, forms: list[Form]) -> list[Form]:
    for form in forms:
        _need(form.dtype in FLOATS and len(form.shape) >= 2, f"cannot transpose {form.dtype.name.lower()} {form.shape}")
    return [Form(form.dtype, (*form.shape[:-2], form.shape[-1], form.shape[-2])) for form in forms]


def _transpose(args: Args, parts: list[Part]) -> list[Bytes]:
    split = [part.data.reshape(*part.form.shape, -1) for part in parts]
    return [data.swapaxes(-3, -2) for data in split]


def _joined_heads(args: Args, forms: list[Form]) -> list[Form]:
    _need(
        [len(form.shape) for form in forms] == [3, 3]
        and forms[0].dtype == forms[1].dtype
        and (forms[0].shape[0], forms[0].shape[1]) == (forms[1].shape[0], forms[1].shape[2]),
        f"{forms} are not two parts of heads",
    )
    (heads, cols, above), below = forms[0].shape, forms[1].shape[1]
    dtype = forms[0].dtype if forms[0].dtype in FLOATS else DType.F32
    return [Form(dtype, (heads * (above + below), cols))]


def _join_heads(args: Args, parts: list[Part]) -> list[Bytes]:
    turned, straight = (_elements(part) for part in parts)
    return [np.concatenate([turned.swapaxes(1, 2), straight], axis=1).view(np.uint8)]


def _elements(part: Part) -> NDArray[Any]:
    """In the part's shape: integers as wide as the elements of a float type, values of a quantised one."""
    raw = np.ascontiguousarray(part.data).reshape(-1)
    if part.form.dtype not in FLOATS:
        return dequantise(raw, part.form.dtype.name.lower(), part.form.shape)
    width = BLOCK_SIZES[part.form.dtype.name.lower()][1]
    return raw.view(f"u{width}").reshape(part.form.shape)


def _as_f32(args: Args, forms: list[Form]) -> list[Form]:
    for form in forms:
        _need(form.dtype in FLOATS, f"cannot compute with {form.dtype.name.lower()}")
    return [Form(DType.F32, form.shape) for form in forms]


def _values(part: Part) -> NDArray[np.float32]:
    name = part.form.dtype.name.lower()
    assert name in PLAIN_DTYPES
    return plain_array(np.ascontiguousarray(part.data).reshape(-1), name, part.form.shape).astype(np.float32)


def _negative_exp(args: Args, parts: list[Part]) -> list[Bytes]:
    return [(-np.exp(_values(part))).view(np.uint8) for part in parts]


def _add_constant(args: Args, parts: list[Part]) -> list[Bytes]:
    return [(_values(part) + np.float32(args[0])).view(np.uint8) for part in parts]


_INVERSES: Final[Mapping[TransformKind, Callable[[Args, Part], Bytes]]] = {
    TransformKind.ROPE_ROWS_FROM_INTERLEAVED: _unpair_rows,
}
_RULES: Final[Mapping[TransformKind, Rule]] = {
    TransformKind.ROPE_ROWS_FROM_INTERLEAVED: Rule(_whole_heads, _pair_rows),
    TransformKind.SLICE_ROWS: Rule(_sliced, _slice),
    TransformKind.TRANSPOSE: Rule(_transposed, _transpose),
    TransformKind.CONCAT_ROWS: Rule(_concatenated, _concatenate),
    TransformKind.STACK: Rule(_stacked, _stack),
    TransformKind.SLICE_HEAD_ROWS: Rule(_sliced_heads, _slice_heads),
    TransformKind.REGROUP_HEAD_ROWS: Rule(_regrouped, _regroup),
    TransformKind.SLICE_FIRST: Rule(_sliced_first, _slice_first),
    TransformKind.RESHAPE: Rule(_reshaped, _keep),
    TransformKind.NEGATIVE_EXP: Rule(_as_f32, _negative_exp),
    TransformKind.ADD_CONSTANT: Rule(_as_f32, _add_constant),
    TransformKind.STRIDE_ROWS: Rule(_strided, _stride),
    TransformKind.JOIN_TURNED_HEADS: Rule(_joined_heads, _join_heads),
}
