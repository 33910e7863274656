"""Multi-head latent attention on the cpu against its definition, and its bits however a sequence is fed."""

import zlib

import msgspec
import numpy as np
import pytest

from treadle import _native
from treadle.errors import InvalidInstructionBinding, UnsupportedModel
from treadle.formats.synthetic import random_tensor
from treadle.formats.tensors import dequantise
from treadle.inference.backends.cpu import CpuBackend
from treadle.inference.backends.cpu_lowering import FUSIONS
from treadle.inference.backends.reference import ReferenceBackend
from treadle.inference.executor import Executor, lay_out
from treadle.models import blocks
from treadle.models.compile import CompileOptions, compile_model
from treadle.models.spec import Architecture, Input, Op, Program, weight
from treadle.plan.context import ExecutionContext
from treadle.plan.ir import DType, ModelFacts, Stage, Symbol
from treadle.plan.params import MLAParams, RMSNormParams, RopeStyle
from treadle.plan.views import StepLimits, TensorView

HIDDEN, VOCAB, LENGTH, PAGE = 256, 61, 300, 64
PAGES = 2 * -(-LENGTH // PAGE)
LIMITS = StepLimits(max_rows=LENGTH + 8, max_batch=2, max_sampled=LENGTH + 8, max_seq_len=320, state_pages=PAGES)
IDS = (np.arange(LENGTH) * 17 % VOCAB).astype(np.int32)
DIRECT = MLAParams(4, 0, 256, 32, 32, 64, 0.125, 1e-6)
LOW = MLAParams(4, 256, 256, 32, 32, 64, 0.125, 1e-6, rope_scale=1.2, rope_style=RopeStyle.HALF)
CASES = {
    "direct": (DIRECT, ("q",)),
    "low-rank": (LOW, ("q_a", "q_a_norm", "q_b", "q_a_bias", "kv_a_bias", "o_bias")),
}


def architecture(params: MLAParams, slots: tuple[str, ...]) -> Architecture:
    """x + mla_attention(rmsnorm(x)) between an embedding and a head."""

    def named(name):
        return weight(name, name, name)

    def norm():
        return Op(RMSNormParams(1e-5), {"gain": named("gain")}, ("x",), "h")

    used = {slot: named(slot) for slot in ("kv_a", "kv_a_norm", "kv_b", "o", "rope_inv_freq", *slots)}
    program = Program(
        stages=(Stage.PREFILL, Stage.DECODE),
        inputs=(Input("ids", DType.I32, (Symbol.ROWS,)),),
        prologue=(blocks.embedding(VOCAB, HIDDEN, named("table")),),
        layers=((norm(), Op(params, used, ("h",), "h"), blocks.residual()),),
        epilogue=(norm(), blocks.lm_head(VOCAB, named("table"))),
        outputs=("logits",),
    )
    return Architecture(ModelFacts("latent", VOCAB, HIDDEN, LENGTH, 1), (program,))


class Weights:
    """Random ones, matrices of `dtype`."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def dtype(self, binding) -> DType:
        return DType.F32 if len(binding.shape) == 1 else DType[self._dtype.upper()]

    def load(self, binding) -> TensorView:
        dtype = self.dtype(binding)
        if dtype is not DType.F32:
            raw = random_tensor(binding.name, self._dtype, binding.shape)
        else:
            values = np.random.default_rng(zlib.crc32(binding.name.encode())).standard_normal(binding.shape)
            values = values * (0.2 if len(binding.shape) == 1 else 0.06)
            if binding.name == "rope_inv_freq":
                values = 0.5 ** np.arange(*binding.shape)
            if binding.name.endswith(("gain", "norm")):
                values = values + 1
            raw = values.astype(np.float32).view(np.uint8).reshape(-1)
        return TensorView(dtype, binding.shape, raw.reshape(*binding.shape[:-1], -1))

    def release(self, binding) -> None:
        pass


def decode(view):
    return dequantise(np.ascontiguousarray(view.data).reshape(-1), view.dtype.name.lower(), view.shape)


def executor(case, dtype, backend, kv_dtype=DType.F32):
    plans = compile_model(architecture(*CASES[case]), "0" * 64, CompileOptions(kv_dtype=kv_dtype, page_tokens=PAGE))
    weights = Weights(dtype)
    return Executor(lay_out(plans, backend, weights, LIMITS, allow_per_slot=True), backend, weights)


def step(run: Executor, spans) -> list[np.ndarray]:
    """Logits of the rows of each slot; a span is [first, end) of one slot's sequence, which is IDS."""

    def ints(values):
        return np.array(values, np.int32)

    counts = [end - first for first, end in spans]
    tables = [np.arange(PAGES // 2)[::-1] + slot * PAGES // 2 for slot in range(len(spans))]
    context = ExecutionContext(
        mode=Stage.PREFILL,
        active_slots=ints(range(len(spans))),
        seq_lens=ints([end for _, end in spans]),
        query_lens=ints(counts),
        positions=ints([first for first, _ in spans]),
        inputs=(np.concatenate([IDS[first:end] for first, end in spans]),),
        page_table=ints(tables),
        state_slots=ints(range(len(spans))),
        sampled_rows=np.arange(sum(counts), dtype=np.int32),
    )
    (found,) = run.run(context)
    return np.split(found.copy(), np.cumsum(counts)[:-1])


def fed(run: Executor, chunk: int, first: int = 0) -> np.ndarray:
    """Logits of positions from `first` on, all before them in one piece."""
    if first:
        step(run, [(0, first)])
    return np.concatenate([step(run, [(i, min(i + chunk, LENGTH))])[0] for i in range(first, LENGTH, chunk)])


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("fusions", [frozenset(), FUSIONS], ids=["apart", "fused"])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_definition(case, fusions):
    expected = fed(executor(case, "q8_0", ReferenceBackend(decode)), 100)
    found = fed(executor(case, "q8_0", CpuBackend(2, "exact", fusions=fusions)), 100)
    assert error(found, expected) < 3e-6
    fast = fed(executor(case, "q8_0", CpuBackend(2, "fast", fusions=fusions)), 100)
    assert 0 < error(fast, expected) < 0.02


@pytest.mark.parametrize("kv_dtype", [DType.F16, DType.BF16, DType.Q8_0])
def test_every_kv_dtype_agrees_with_the_definition(kv_dtype):
    expected = fed(executor("direct", "f32", ReferenceBackend(decode), kv_dtype), 100)
    found = fed(executor("direct", "f32", CpuBackend(2, "exact"), kv_dtype), 100)
    exact = fed(executor("direct", "f32", CpuBackend(2, "exact")), 100)
    assert 0 < error(exact, expected) < 0.02
    assert error(found, expected) < (0.004 if kv_dtype is DType.BF16 else 3e-4)


@pytest.mark.parametrize(
    ("numerics", "dtype"), [("exact", "q8_0"), ("fast", "q4_k"), ("fast", "bf16"), ("bf16", "q4_k"), ("exact", "f32")]
)
@pytest.mark.parametrize("kv_dtype", [DType.F32, DType.F16, DType.BF16, DType.Q8_0])
def test_bits_depend_on_the_sequence_alone(numerics, dtype, kv_dtype):
    """ISAs, threads, chunks and one by one over more positions than a split, and beside another sequence."""
    best, *others = _native.supported_isas()
    expected = fed(executor("low-rank", dtype, CpuBackend(1, numerics, best, frozenset()), kv_dtype), 67)
    for isa, threads in ((best, 3), *((isa, 2) for isa in others if isa != "plain")):
        run = executor("low-rank", dtype, CpuBackend(threads, numerics, isa), kv_dtype)
        for chunk, first in ((LENGTH, 0), (1, LENGTH - 5), (7, LENGTH - 50)):
            assert np.array_equal(fed(run, chunk, first), expected[first:]), (isa, threads, chunk)
    step(run, [(0, 250), (0, 9)])
    one, other = step(run, [(250, 290), (9, 12)])
    assert np.array_equal(one, expected[250:290])
    assert np.array_equal(other, expected[9:12])
    one, other = step(run, [(290, 291), (12, 14)])
    assert np.array_equal(one, expected[290:291])
    assert np.array_equal(other, expected[12:14])


def test_what_pages_cannot_hold_is_refused():
    params = msgspec.structs.replace(DIRECT, rope_dim=16)
    with pytest.raises(UnsupportedModel, match="kv_lora_rank 256 and rope_dim 16"):
        compile_model(architecture(params, ("q",)), "0" * 64, CompileOptions(kv_dtype=DType.Q8_0))


@pytest.mark.parametrize("changes", [{"nope_dim": 24}, {"v_head_dim": 40}, {"nope_dim": 528}, {"num_heads": 0}])
def test_sizes_that_the_core_does_not_take_are_refused(changes):
    params = msgspec.structs.replace(DIRECT, **changes)
    op = (6, [(64, HIDDEN)], [(64, HIDDEN)], [None] * 12, [(1, 6, params.pack().payload)], (64, 64 * 288 * 4, 64))
    with pytest.raises(InvalidInstructionBinding, match="mla_attention"):
        _native.make_program(_native.ThreadPool(1), "", "exact", (8, 1, 8, 8, 1), [op])
