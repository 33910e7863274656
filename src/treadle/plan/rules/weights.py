"""Rules over weights: references, bindings, sources, transforms, generators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite, prod
from typing import Final

from treadle.errors import InvalidInstructionBinding, InvalidPlan, InvalidWeightRefCount, UnsupportedTensorRank
from treadle.plan.ir import (
    MAX_NAME,
    MAX_RANK,
    NO_WEIGHT,
    DType,
    Generator,
    GeneratorKind,
    Transform,
    TransformKind,
    WeightBinding,
)
from treadle.plan.rules.subject import MAX_ELEMENTS, Rule, Subject, clip, plausible, unify
from treadle.plan.rules.values import WIDTHS

MAX_TENSORS: Final = 4096
MAX_TRANSFORMS: Final = 16
MAX_GENERATOR_ARGS: Final = 4096
_INT64: Final = 1 << 63

TRANSFORM_ARGS: Final[Mapping[TransformKind, tuple[int, int]]] = {
    TransformKind.ROPE_ROWS_FROM_INTERLEAVED: (1, 1),
    TransformKind.SLICE_ROWS: (2, 2),
    TransformKind.TRANSPOSE: (0, 0),
    TransformKind.CONCAT_ROWS: (0, 0),
    TransformKind.STACK: (0, 0),
    TransformKind.SLICE_HEAD_ROWS: (3, 3),
    TransformKind.SLICE_FIRST: (2, 2),
    TransformKind.RESHAPE: (1, MAX_RANK),
    TransformKind.NEGATIVE_EXP: (0, 0),
    TransformKind.ADD_CONSTANT: (1, 1),
    TransformKind.STRIDE_ROWS: (2, 2),
    TransformKind.REGROUP_HEAD_ROWS: (3, 16),
    TransformKind.JOIN_TURNED_HEADS: (0, 0),
}
"""(fewest, most) arguments."""

_JOINS: Final = {TransformKind.CONCAT_ROWS, TransformKind.STACK, TransformKind.JOIN_TURNED_HEADS}
_SLICES: Final = {TransformKind.SLICE_ROWS, TransformKind.SLICE_FIRST, TransformKind.SLICE_HEAD_ROWS}

GENERATOR_ARGS: Final[Mapping[GeneratorKind, tuple[int, int]]] = {
    GeneratorKind.ROPE_DEFAULT: (2, 2),
    GeneratorKind.ROPE_LINEAR: (3, 3),
    GeneratorKind.ROPE_LLAMA3: (6, 6),
    GeneratorKind.ROPE_YARN: (7, 7),
    GeneratorKind.ROPE_FACTORS: (2, 2),
    GeneratorKind.ROPE_FACTOR_LIST: (3, MAX_GENERATOR_ARGS),
    GeneratorKind.ALIBI_SLOPES: (1, 1),
}
_MAY_BE_ZERO: Final = {(GeneratorKind.ROPE_YARN, 6)}


def _weight_count(s: Subject) -> Iterator[str]:
    for op in s.ops:
        if op.spec is not None and len(op.instruction.weights) != len(op.spec.weights):
            slots = ", ".join(slot.name for slot in op.spec.weights) or "none"
            yield f"{op.label}: {len(op.instruction.weights)} weights, expected {len(op.spec.weights)}: {slots}"


def _weight_optional(s: Subject) -> Iterator[str]:
    for op in s.ops:
        if op.spec is None:
            continue
        for slot, w in zip(op.spec.weights, op.instruction.weights, strict=False):
            if w == NO_WEIGHT and not slot.optional:
                yield f"{op.label}: weight {slot.name} is absent, and it is not optional"


def _weight_range(s: Subject) -> Iterator[str]:
    count = len(s.compiled.weight_bindings)
    for op in s.ops:
        for w in op.instruction.weights:
            if not 0 <= w < count and w != NO_WEIGHT:
                yield f"{op.label}: weight {w} is outside 0..{count - 1}"


def _weights_used(s: Subject) -> Iterator[str]:
    used = {w for op in s.ops for w in op.instruction.weights}
    for i, binding in enumerate(s.compiled.weight_bindings):
        if i not in used:
            yield f"weight {clip(binding.name)}: no instruction uses it"


def _weight_shapes(s: Subject) -> Iterator[str]:
    for op in s.ops:
        sizes = op.sizes()
        for _, words, _, spec in op.registers:
            unify(sizes, words, spec.shape)
        for slot, words, binding in op.weights:
            if plausible(binding.shape) and (found := unify(sizes, words, binding.shape)):
                yield f"{op.label}: weight {slot} ({clip(binding.name)}, {list(binding.shape)}) {found}"
        for slot, a, b in WIDTHS.get(type(op.sound), ()) if op.sound is not None else ():
            sizes.setdefault(a, sizes.get(b, 0))
            if slot not in op.present and sizes[a] != sizes.get(b, sizes[a]):
                yield f"{op.label}: without the weight {slot}, {a} = {sizes[a]} must equal {b} = {sizes[b]}"


def _binding_index(s: Subject) -> Iterator[str]:
    for i, binding in enumerate(s.compiled.weight_bindings):
        if binding.index != i:
            yield f"weight {clip(binding.name)}: index {binding.index}, expected {i}"


def _binding_name(s: Subject) -> Iterator[str]:
    seen: set[str] = set()
    for binding in s.compiled.weight_bindings:
        if not _is_name(binding.name) or binding.name in seen:
            yield f"weight {binding.index}: name {clip(binding.name)} must be unique, of 1..{MAX_NAME} characters"
        seen.add(binding.name)


def _is_name(text: str) -> bool:
    return 0 < len(text) <= MAX_NAME and text.isprintable()


def _weight_rank(s: Subject) -> Iterator[str]:
    for binding in s.compiled.weight_bindings:
        if not 1 <= len(binding.shape) <= MAX_RANK:
            yield f"weight {clip(binding.name)}: rank {len(binding.shape)}; expected 1..{MAX_RANK}"


def _weight_sizes(s: Subject) -> Iterator[str]:
    for binding in s.compiled.weight_bindings:
        shape = binding.shape[:MAX_RANK]
        if shape and not plausible(shape):
            yield f"weight {clip(binding.name)}: {list(shape)}; sizes must be positive, at most 2^48 elements in all"


def _weight_dtypes(s: Subject) -> Iterator[str]:
    for binding in s.compiled.weight_bindings:
        dtypes = binding.dtypes
        if not dtypes or len(set(dtypes)) != len(dtypes):
            yield f"weight {clip(binding.name)}: accepted dtypes {[int(d) for d in dtypes[:32]]} are empty or repeat"
        elif binding.generator is not None and dtypes != (DType.F32,):
            yield f"weight {clip(binding.name)}: generated weights are f32, found {[int(d) for d in dtypes[:32]]}"


def _weight_sources(s: Subject) -> Iterator[str]:
    for binding in s.compiled.weight_bindings:
        reads = binding.generator is None or binding.generator.kind is GeneratorKind.ROPE_FACTORS
        if reads and not binding.sources:
            yield f"weight {clip(binding.name)}: neither a source nor a generator"
        if not reads and binding.sources:
            yield f"weight {clip(binding.name)}: its generator reads no tensor, but sources are given"
        containers = [source.container for source in binding.sources]
        if len(set(containers)) != len(containers):
            yield f"weight {clip(binding.name)}: two sources for one container"
        for source in binding.sources:
            if not 1 <= len(source.tensors) <= MAX_TENSORS or not all(map(_is_name, source.tensors)):
                yield f"weight {clip(binding.name)}: a source needs 1..{MAX_TENSORS} tensor names"


def _transforms(s: Subject) -> Iterator[str]:
    for binding in s.compiled.weight_bindings:
        for source in binding.sources:
            if len(source.transforms) > MAX_TRANSFORMS:
                yield f"weight {clip(binding.name)}: {len(source.transforms)} transforms; at most {MAX_TRANSFORMS}"
            joins = sum(t.kind in _JOINS for t in source.transforms)
            if len(source.tensors) > 1 and joins != 1:
                yield f"weight {clip(binding.name)}: {len(source.tensors)} tensors, {joins} transforms that join them"
            for transform in source.transforms[:MAX_TRANSFORMS]:
                if found := _transform_finding(transform):
                    yield f"weight {clip(binding.name)}: {transform.kind.name.lower()} {found}"


def _transform_finding(transform: Transform) -> str | None:
    kind, args = transform.kind, transform.args
    fewest, most = TRANSFORM_ARGS[kind]
    if not fewest <= len(args) <= most:
        return f"has {len(args)} arguments, expected {fewest}..{most}"
    if any(not -_INT64 <= arg < _INT64 for arg in args):
        return "has an argument beyond 64 bits"
    if kind is TransformKind.ADD_CONSTANT:
        return None
    if any(arg < 0 for arg in args):
        return f"has a negative argument: {list(args)}"
    if kind in _SLICES and args[-2] >= args[-1]:
        return f"cuts nothing out: start {args[-2]}, stop {args[-1]}"
    if kind in (TransformKind.ROPE_ROWS_FROM_INTERLEAVED, TransformKind.SLICE_HEAD_ROWS) and args[0] < 1:
        return "needs at least one head"
    if kind is TransformKind.STRIDE_ROWS and not args[0] < args[1]:
        return f"needs start < step, found {list(args)}"
    if kind is TransformKind.REGROUP_HEAD_ROWS and 0 in args:
        return f"needs heads and sizes > 0, found {list(args)}"
    if kind is TransformKind.RESHAPE and (0 in args or prod(args) > MAX_ELEMENTS):
        return f"to {list(args)}: sizes must be positive, at most 2^48 elements in all"
    return None


def _generators(s: Subject) -> Iterator[str]:
    for binding in s.compiled.weight_bindings:
        if binding.generator is not None and (found := _generator_finding(binding, binding.generator)):
            yield f"weight {clip(binding.name)}: {binding.generator.kind.name.lower()} {found}"


def _generator_finding(binding: WeightBinding, generator: Generator) -> str | None:
    kind, args = generator.kind, generator.args
    fewest, most = GENERATOR_ARGS[kind]
    if not fewest <= len(args) <= most:
        return f"has {len(args)} arguments, expected {fewest}..{most}"
    for i, arg in enumerate(args):
        if not isfinite(arg) or (arg <= 0 and not ((kind, i) in _MAY_BE_ZERO and arg == 0)):
            return f"has argument {i} = {arg}, expected a finite number > 0"
    size = args[0] if kind is GeneratorKind.ALIBI_SLOPES else args[0] / 2
    if binding.shape != (size,):
        return f"gives {size:g} values, the weight has shape {list(binding.shape[:MAX_RANK])}"
    if kind is GeneratorKind.ROPE_FACTOR_LIST and len(args) - 2 != size:
        return f"has {len(args) - 2} factors for {size:g} frequencies"
    return None


RULES: Final = (
    Rule("weight-count", InvalidWeightRefCount, _weight_count),
    Rule("weight-optional", InvalidWeightRefCount, _weight_optional),
    Rule("weight-range", InvalidInstructionBinding, _weight_range),
    Rule("weights-used", InvalidPlan, _weights_used),
    Rule("binding-index", InvalidPlan, _binding_index),
    Rule("binding-name", InvalidPlan, _binding_name),
    Rule("weight-rank", UnsupportedTensorRank, _weight_rank),
    Rule("weight-sizes", InvalidPlan, _weight_sizes),
    Rule("weight-dtypes", InvalidPlan, _weight_dtypes),
    Rule("weight-sources", InvalidPlan, _weight_sources),
    Rule("transforms", InvalidPlan, _transforms),
    Rule("generators", InvalidPlan, _generators),
    Rule("weight-shapes", InvalidInstructionBinding, _weight_shapes),
)
