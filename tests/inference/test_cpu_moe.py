"""The mixture of experts on the cpu against its definition, and its bits whatever runs beside a row."""

import zlib

import msgspec
import numpy as np
import pytest

from treadle import _native
from treadle.errors import InvalidInstructionBinding, InvalidPlan
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
from treadle.plan.ops import OPS
from treadle.plan.params import Activation, GroupScore, MoEParams, RMSNormParams, RouterScore
from treadle.plan.views import StepLimits, TensorView

HIDDEN, INNER, VOCAB, ROWS = 256, 256, 61, 40
LIMITS = StepLimits(max_rows=64, max_batch=4, max_sampled=64, max_seq_len=64, state_pages=1)
BIASES = ("router_bias", "gate_bias", "up_bias", "down_bias")
SHARED = ("shared_gate", "shared_up", "shared_down")
FLOAT_SLOTS = ("router", "shared_router", *BIASES)

CASES = {
    "softmax": (MoEParams(8, 3, INNER), ("gate",)),
    "normalised": (MoEParams(8, 2, INNER, normalise=1, routed_scale=1.5), ("gate",)),
    "topk-softmax": (MoEParams(8, 4, INNER, router_score=RouterScore.TOPK_THEN_SOFTMAX), ("gate",)),
    "one": (MoEParams(8, 1, INNER), ("gate",)),
    "all": (MoEParams(4, 4, INNER), ("gate",)),
    "plain": (MoEParams(8, 2, INNER, gated=0, activation=Activation.RELU2), ()),
    "shared": (MoEParams(8, 2, INNER, shared_intermediate=512), ("gate", *SHARED)),
    "shared-gate": (MoEParams(8, 2, INNER, shared_intermediate=512), ("gate", *SHARED, "shared_router")),
    "clamped": (
        MoEParams(
            8,
            4,
            INNER,
            activation=Activation.SWIGLU_CLAMPED,
            alpha=1.702,
            limit=0.6,
            router_score=RouterScore.TOPK_THEN_SOFTMAX,
        ),
        ("gate", *BIASES),
    ),
    "groups-max": (MoEParams(12, 3, INNER, num_groups=4, top_groups=2), ("gate",)),
    "sigmoid": (
        MoEParams(
            16,
            4,
            INNER,
            router_score=RouterScore.SIGMOID,
            normalise=1,
            normalise_eps=1e-20,
            routed_scale=2.5,
            num_groups=4,
            top_groups=2,
            group_score=GroupScore.SUM_TOP2,
            shared_intermediate=512,
        ),
        ("gate", "score_correction", *SHARED),
    ),
}


def architecture(params: MoEParams, slots: tuple[str, ...]) -> Architecture:
    """x + moe(rmsnorm(x)) between an embedding and a head."""

    def named(name):
        return weight(name, name, name)

    def norm():
        return Op(RMSNormParams(1e-5), {"gain": named("gain")}, ("x",), "h")

    used = {slot: named(slot) for slot in ("router", "up", "down", *slots)}
    program = Program(
        stages=(Stage.PREFILL, Stage.DECODE),
        inputs=(Input("ids", DType.I32, (Symbol.ROWS,)),),
        prologue=(blocks.embedding(VOCAB, HIDDEN, named("table")),),
        layers=((norm(), Op(params, used, ("h",), "h"), blocks.residual()),),
        epilogue=(norm(), blocks.lm_head(VOCAB, named("table"))),
        outputs=("logits",),
    )
    return Architecture(ModelFacts("moe", VOCAB, HIDDEN, 64, 1), (program,))


class Weights:
    """Random ones, experts of `dtype`, the rest f32."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def dtype(self, binding) -> DType:
        plain = len(binding.shape) == 1 or binding.name in FLOAT_SLOTS
        return DType.F32 if plain else DType[self._dtype.upper()]

    def load(self, binding) -> TensorView:
        dtype = self.dtype(binding)
        if dtype is not DType.F32:
            raw = random_tensor(binding.name, self._dtype, binding.shape)
        else:
            values = np.random.default_rng(zlib.crc32(binding.name.encode())).standard_normal(binding.shape)
            sizes = {"router": 0.1, "gain": 0.2, "router_bias": 0.3, "shared_router": 0.1}
            values = values * sizes.get(binding.name, 0.3) + (binding.name == "gain")
            raw = values.astype(np.float32).view(np.uint8).reshape(-1)
        return TensorView(dtype, binding.shape, raw.reshape(*binding.shape[:-1], -1))

    def release(self, binding) -> None:
        pass


def decode(view):
    return dequantise(np.ascontiguousarray(view.data).reshape(-1), view.dtype.name.lower(), view.shape)


def executor(case, weights, backend):
    plans = compile_model(architecture(*CASES[case]), "0" * 64, CompileOptions())
    return Executor(lay_out(plans, backend, weights, LIMITS, allow_per_slot=True), backend, weights)


def logits(run: Executor, ids: np.ndarray) -> np.ndarray:
    def ints(*values):
        return np.array(values, np.int32)

    context = ExecutionContext(
        mode=Stage.PREFILL,
        active_slots=ints(0),
        seq_lens=ints(len(ids)),
        query_lens=ints(len(ids)),
        positions=ints(0),
        inputs=(ids,),
        page_table=np.zeros((1, 0), np.int32),
        state_slots=ints(0),
        sampled_rows=np.arange(len(ids), dtype=np.int32),
    )
    (found,) = run.run(context)
    return found.copy()


IDS = (np.arange(ROWS) * 17 % VOCAB).astype(np.int32)


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("fusions", [frozenset(), FUSIONS], ids=["apart", "fused"])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_definition(case, fusions):
    expected = logits(executor(case, Weights("q8_0"), ReferenceBackend(decode)), IDS)
    found = logits(executor(case, Weights("q8_0"), CpuBackend(2, "exact", fusions=fusions)), IDS)
    assert error(found, expected) < 2e-6
    fast = logits(executor(case, Weights("q8_0"), CpuBackend(2, "fast", fusions=fusions)), IDS)
    assert 0 < error(fast, expected) < 0.02


@pytest.mark.parametrize("numerics", ["exact", "bf16", "fast"])
@pytest.mark.parametrize("dtype", ["q4_k", "mxfp4", "bf16", "f32"])
def test_bits_depend_on_the_row_alone(dtype, numerics):
    for case in ("clamped", "sigmoid", "shared-gate"):
        best, *others = _native.supported_isas()
        expected = logits(executor(case, Weights(dtype), CpuBackend(1, numerics, best, frozenset())), IDS)
        for isa, threads in ((best, 2), (best, 3), *((isa, 2) for isa in others)):
            run = executor(case, Weights(dtype), CpuBackend(threads, numerics, isa))
            assert np.array_equal(logits(run, IDS), expected), (isa, threads)
            for rows in (1, 2, 5):
                some = np.concatenate([logits(run, IDS[i : i + rows]) for i in range(0, 10, rows)])
                assert np.array_equal(some, expected[:10]), (isa, threads, rows)


class Poisoned(Weights):
    """One row of the table is not a number."""

    def load(self, binding):
        view = super().load(binding)
        if binding.name == "table":
            view.data[IDS[3]].view(np.float16)[0] = np.nan  # a scale
        return view


def test_rows_that_are_not_numbers_stay_by_themselves():
    expected = logits(executor("sigmoid", Weights("q8_0"), CpuBackend(2, "exact")), IDS)
    found = logits(executor("sigmoid", Poisoned("q8_0"), CpuBackend(2, "exact")), IDS)
    bad = IDS[3] == IDS
    assert np.isnan(found[bad]).any(axis=1).all()
    columns = np.arange(VOCAB) != IDS[3]
    assert np.array_equal(found[~bad][:, columns], expected[~bad][:, columns])


class Level(Weights):
    """The router is all zeros."""

    def load(self, binding):
        view = super().load(binding)
        return TensorView(view.dtype, view.shape, view.data * 0) if binding.name == "router" else view


def test_equal_logits_choose_the_first_experts():
    expected, found = (
        logits(executor("normalised", Level("q8_0"), backend), IDS)
        for backend in (ReferenceBackend(decode), CpuBackend(2, "exact"))
    )
    assert error(found, expected) < 2e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"experts_per_token": 9},
        {"experts_per_token": 0},
        {"num_groups": 3},
        {"num_groups": 4, "top_groups": 5},
        {"num_groups": 4, "top_groups": 1, "experts_per_token": 3},
        {"num_groups": 8, "top_groups": 8, "group_score": GroupScore.SUM_TOP2},
        {"router_score": 7},
        {"num_experts": 0},
    ],
)
def test_hostile_params_are_refused(changes):
    """By the plan's rules, and by the native core for itself."""
    good, slots = CASES["softmax"]
    params = msgspec.structs.replace(good, **changes)
    with pytest.raises(InvalidPlan):
        compile_model(architecture(params, slots), "0" * 64, CompileOptions())
    count, matrix = params.num_experts, (64, int(DType.F32))
    shapes = {
        "router": [count, HIDDEN],
        "gate": [count, INNER, HIDDEN],
        "up": [count, INNER, HIDDEN],
        "down": [count, HIDDEN, INNER],
    }
    weights = [(*matrix, shapes[slot.name]) if slot.name in shapes else None for slot in OPS[params.OPCODE].weights]
    block = params.pack()
    op = (3, [(64, HIDDEN)], [(64, HIDDEN)], weights, [(1, 3, block.payload)], None)
    with pytest.raises(InvalidInstructionBinding, match="moe"):
        _native.make_program(_native.ThreadPool(1), "", "exact", (8, 1, 8, 8, 1), [op])
