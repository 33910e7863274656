"""Recurrent mixers on the cpu against their definitions; their bits and state whatever the cuts and the company."""

import zlib

import ml_dtypes
import msgspec
import numpy as np
import pytest

from treadle import _native
from treadle.errors import InvalidBatchSize, InvalidInstructionBinding, InvalidPlan
from treadle.formats.synthetic import random_tensor
from treadle.formats.tensors import BLOCK_SIZES, dequantise
from treadle.inference.backends.cpu import CpuBackend
from treadle.inference.backends.cpu_lowering import FUSIONS
from treadle.inference.backends.reference import ReferenceBackend
from treadle.inference.executor import Executor, lay_out
from treadle.inference.state import StatePool
from treadle.models import blocks
from treadle.models.compile import CompileOptions, compile_model
from treadle.models.spec import Architecture, Input, Op, Program, weight
from treadle.plan.context import ExecutionContext
from treadle.plan.ir import DType, ModelFacts, Stage, Symbol
from treadle.plan.params import (
    Activation,
    GatedDeltaNetParams,
    MambaNorm,
    MambaParams,
    RMSNormParams,
    ShortConvParams,
)
from treadle.plan.views import StepLimits, TensorView

HIDDEN, VOCAB = 96, 61
LIMITS = StepLimits(max_rows=80, max_batch=4, max_sampled=80, max_seq_len=80, state_pages=1)

CASES = {
    "shortconv": (ShortConvParams(64, 3), "in conv out"),
    "shortconv-odd": (ShortConvParams(40, 5), "in in_bias conv conv_bias out out_bias"),
    "mamba": (MambaParams(1, 64, 16, 4, dt_rank=32), "in conv conv_bias x dt dt_bias a d out"),
    "mamba-odd": (
        MambaParams(1, 72, 5, 2, dt_rank=3, norm=MambaNorm.RMS_DT_B_C, norm_eps=1e-2, activation=Activation.GELU),
        "in in_bias conv x dt dt_bias a d dt_norm b_norm c_norm out out_bias",
    ),
    "mamba2": (
        MambaParams(2, 128, 32, 4, heads=4, norm=MambaNorm.GATED_RMS, norm_eps=1e-5),
        "in conv conv_bias dt_bias a d norm out",
    ),
    "mamba2-odd": (
        MambaParams(
            2,
            120,
            7,
            1,
            heads=6,
            groups=3,
            norm=MambaNorm.GATED_RMS,
            norm_groups=2,
            norm_eps=1e-2,
            dt_min=0.3,
            dt_max=0.9,
        ),
        "in in_bias conv dt_bias a d norm out out_bias",
    ),
    "mamba2-gate": (MambaParams(2, 48, 9, 3, heads=3, groups=1), "in conv dt_bias a d out"),
    "delta": (GatedDeltaNetParams(2, 4, 32, 32, 4, 1e-6), "qkv z b a conv dt_bias decay norm out"),
    "delta-odd": (GatedDeltaNetParams(3, 6, 24, 20, 2, 1e-2), "qkv z b a conv conv_bias dt_bias decay norm out"),
}


def architecture(case: str) -> Architecture:
    """x + mixer(rmsnorm(x)), twice, between an embedding and a head."""
    params, slots = CASES[case]

    def named(name):
        return weight(name, name, name)

    def norm(name):
        return Op(RMSNormParams(1e-5), {"gain": named(name)}, ("x",), "h")

    def mixer(i):
        return Op(params, {slot: named(f"{i}.{slot}") for slot in slots.split()}, ("h",), "h")

    program = Program(
        stages=(Stage.PREFILL, Stage.DECODE),
        inputs=(Input("ids", DType.I32, (Symbol.ROWS,)),),
        prologue=(blocks.embedding(VOCAB, HIDDEN, named("table")),),
        layers=tuple((norm(f"{i}.gain"), mixer(i), blocks.residual(scale=0.5)) for i in range(2)),
        epilogue=(norm("gain"), blocks.lm_head(VOCAB, named("table"))),
        outputs=("logits",),
    )
    return Architecture(ModelFacts("mixer", VOCAB, HIDDEN, 80, 2), (program,))


class Weights:
    """Random ones: large matrices of `dtype` where their rows are whole blocks of it, taps of `taps`, the rest f32."""

    def __init__(self, dtype: str, taps: str = "f32") -> None:
        self._dtype, self._taps = dtype, taps

    def _name(self, binding) -> str:
        if binding.name.endswith(".conv"):
            return self._taps
        whole = len(binding.shape) > 1 and binding.shape[-1] % BLOCK_SIZES[self._dtype][0] == 0
        return self._dtype if whole else "f32"

    def dtype(self, binding) -> DType:
        return DType[self._name(binding).upper()]

    def load(self, binding) -> TensorView:
        name, slot = self._name(binding), binding.name.split(".")[-1]
        if name not in ("f32", "f16", "bf16"):
            raw = random_tensor(binding.name, name, binding.shape)
        else:
            values = np.random.default_rng(zlib.crc32(binding.name.encode())).standard_normal(binding.shape)
            if slot in ("a", "decay"):
                values = -np.exp(values)
            elif slot == "gain" or slot.endswith("norm"):
                values = 1 + 0.2 * values
            elif len(binding.shape) > 1:
                values = values / binding.shape[-1] ** 0.5
            values = values.astype(np.float32)
            if name != "f32":
                values = values.astype({"f16": np.float16, "bf16": ml_dtypes.bfloat16}[name])
            raw = values.view(np.uint8).reshape(-1)
        return TensorView(self.dtype(binding), binding.shape, raw.reshape(*binding.shape[:-1], -1))

    def release(self, binding) -> None:
        pass


def decode(view):
    return dequantise(np.ascontiguousarray(view.data).reshape(-1), view.dtype.name.lower(), view.shape)


class Run:
    """Slots of one executor and what they have seen."""

    def __init__(self, case, backend, weights=None):
        plans = compile_model(architecture(case), "0" * 64, CompileOptions())
        self.layout = lay_out(plans, backend, weights or Weights("f32"), LIMITS, allow_per_slot=True)
        self.executor = Executor(self.layout, backend, weights or Weights("f32"))
        self.pool = StatePool(self.layout.states, self.executor.states, 1, LIMITS.max_batch, LIMITS.max_seq_len)

    def feed(self, *parts):
        """One step of (slot, ids) pairs -> logits of each."""
        slots = np.array([slot for slot, _ in parts], np.int32)
        counts = np.array([len(ids) for _, ids in parts], np.int32)
        before = np.array([self.pool.length(slot) for slot in slots.tolist()], np.int32)
        context = ExecutionContext(
            mode=Stage.PREFILL,
            active_slots=slots,
            seq_lens=before + counts,
            query_lens=counts,
            positions=before,
            inputs=(np.concatenate([ids for _, ids in parts]).astype(np.int32),),
            page_table=self.pool.table[slots],
            state_slots=slots,
            sampled_rows=np.arange(counts.sum(), dtype=np.int32),
        )
        (found,) = self.executor.run(context)
        for slot, length in zip(slots.tolist(), (before + counts).tolist(), strict=True):
            self.pool.reserve(slot, length)
            self.pool.commit(slot, length)
        return np.split(found.copy(), np.cumsum(counts)[:-1])

    def alone(self, ids, *cuts):
        """Logits of a new sequence, fed in pieces."""
        slot = self.pool.alloc()
        found = np.concatenate([self.feed((slot, part))[0] for part in np.split(ids, list(cuts))])
        self.pool.deinit(slot)
        return found


IDS = np.arange(70) * 17 % VOCAB


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_definition(case):
    expected = Run(case, ReferenceBackend(decode)).alone(IDS, 3, 40)
    for fusions in (frozenset(), FUSIONS):
        found = Run(case, CpuBackend(2, "exact", fusions=fusions)).alone(IDS)
        assert error(found, expected) < 1e-5


@pytest.mark.parametrize("taps", ["f16", "bf16"])
@pytest.mark.parametrize("case", ["shortconv-odd", "mamba", "mamba2", "delta-odd"])
def test_agrees_with_narrow_taps(case, taps):
    weights = Weights("q8_0", taps)
    expected = Run(case, ReferenceBackend(decode), weights).alone(IDS)
    assert error(Run(case, CpuBackend(2, "exact"), weights).alone(IDS), expected) < 1e-5
    assert 0 < error(Run(case, CpuBackend(2, "fast"), weights).alone(IDS), expected) < 0.2


@pytest.mark.parametrize("dtype", ["q4_1", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_bits_depend_on_the_sequence_alone(case, dtype):
    """Not on threads, ISA, fusions, cuts, or on what runs beside it."""
    best, *others = _native.supported_isas()
    expected = Run(case, CpuBackend(1, "fast", best, frozenset()), Weights(dtype)).alone(IDS)
    for isa, threads in ((best, 2), (best, 3), *((isa, 2) for isa in others)):
        run = Run(case, CpuBackend(threads, "fast", isa), Weights(dtype))
        for cuts in ((), (1, 2, 3, 41), range(1, 70)):
            assert np.array_equal(run.alone(IDS, *cuts), expected), (isa, threads, cuts)
        a, b, c = (run.pool.alloc() for _ in range(3))
        run.feed((c, IDS[5:19]), (a, IDS[:1]))
        beside = run.feed((a, IDS[1:30]), (b, IDS[:20]), (c, IDS[:9]))
        assert np.array_equal(beside[0], expected[1:30])
        assert np.array_equal(beside[1], expected[:20])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", ["shortconv", "mamba", "mamba2", "delta"])
def test_every_action_of_the_pool(case, backend):
    run = Run(case, CpuBackend(2, "exact") if backend == "cpu" else ReferenceBackend(decode))
    expected = run.alone(IDS, 30)
    slot = run.pool.alloc()
    run.feed((slot, IDS[:30]))
    copy = run.pool.clone(slot)
    saved = run.pool.evict(run.pool.clone(slot), keep=True)
    back = run.pool.alloc(saved)
    other = run.feed((copy, IDS[40:]))[0]  # the copy goes its own way
    for same in (slot, back):
        assert np.array_equal(run.feed((same, IDS[30:]))[0], expected[30:])
    assert not np.array_equal(other, expected[40:])
    assert run.pool.truncate(back, 50) == 0  # nothing runs backwards: it is fed again
    assert np.array_equal(np.concatenate([run.feed((back, part))[0] for part in (IDS[:30], IDS[30:])]), expected)
    run.pool.reset(slot)
    run.pool.reuse(slot)
    assert np.array_equal(run.feed((slot, IDS[:30]))[0], expected[:30])


def test_a_model_without_paged_state_is_quoted_by_the_slot():
    run = Run("mamba2", CpuBackend(2, "exact"))
    quote, page = run.layout.quote(), -(-(4 * ((128 + 64) * 3 + 128 * 32)) // 64) * 64
    assert (quote.state_bytes_per_token, quote.state_bytes_per_slot) == (0, 2 * page)
    assert quote.state_bytes == LIMITS.max_batch * 2 * page
    assert run.executor.measured_bytes == quote.total_bytes
    assert run.pool.total_pages == run.pool.pages_for(80) == 0


def test_a_slot_past_the_state_is_refused():
    run = Run("mamba", CpuBackend(1, "exact"))
    one = np.ones(1, np.int32)
    context = ExecutionContext(
        mode=Stage.DECODE,
        active_slots=0 * one,
        seq_lens=one,
        query_lens=one,
        positions=0 * one,
        inputs=(one,),
        page_table=np.full((1, 1), -1, np.int32),
        state_slots=4 * one,
        sampled_rows=0 * one,
    )
    with pytest.raises(InvalidBatchSize, match="state slot 4"):
        run.executor.run(context)


BAD = {
    "mamba": [{"generation": 3}, {"inner": 0}, {"conv_width": 65}, {"conv_width": 0}, {"activation": 99}],
    "mamba2": [{"heads": 0}, {"heads": 3}, {"groups": 3}, {"groups": 0}, {"norm_groups": 7}, {"norm_groups": 0}],
    "shortconv": [{"conv_width": 65}],
    "delta": [{"num_k_heads": 0}, {"num_k_heads": 3}, {"conv_width": 65}, {"activation": 99}],
}


@pytest.mark.parametrize(("case", "changes"), [(case, changes) for case, all in BAD.items() for changes in all])
def test_hostile_params_are_refused(case, changes, monkeypatch):
    """By the plan's rules, and by the native core for itself."""
    good, slots = CASES[case]
    params = msgspec.structs.replace(good, **changes)
    monkeypatch.setitem(CASES, case, (params, slots))
    with pytest.raises(InvalidPlan):
        compile_model(architecture(case), "0" * 64, CompileOptions())
    monkeypatch.undo()
    plans = compile_model(architecture(case), "0" * 64, CompileOptions())
    program = plans.prefill
    blocks_ = tuple(params.pack() if b.opcode == params.OPCODE else b for b in program.param_blocks)
    changed = msgspec.structs.replace(program, param_blocks=blocks_)
    dtypes = {b.index: DType.F32 for b in program.weight_bindings}
    with pytest.raises(InvalidInstructionBinding):
        CpuBackend(1, "exact").workspace_bytes(changed, dtypes, LIMITS)
