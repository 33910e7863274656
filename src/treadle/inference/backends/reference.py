"""The reference backend: every op by its NumPy definition in f32. Slow and plain; the others are tested against it."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from treadle.compute import reference as ops
from treadle.errors import Cancelled
from treadle.inference.backends import reference_mixers as mixers
from treadle.inference.backends import reference_mlp as mlp
from treadle.inference.backends import reference_pool as pool
from treadle.inference.backends.base import F32, Bytes, LinkRequest
from treadle.inference.backends.reference_bound import I32, NUMPY, Adapter, Bound, Register, Step
from treadle.inference.backends.reference_latent import mla_attention
from treadle.inference.backends.reference_pages import with_past
from treadle.inference.certificates import code_hash
from treadle.inference.edits import RowEdits
from treadle.inference.memory import aligned
from treadle.inference.sampling import Sampling
from treadle.plan.adapters import AdapterCapability, AdapterTable, BatchSupport
from treadle.plan.context import Counters, ExecutionContext
from treadle.plan.ir import (
    NO_REGISTER,
    NO_WEIGHT,
    CompiledPlan,
    DType,
    Instruction,
    Opcode,
    RegisterSpec,
    Symbol,
    WeightBinding,
)
from treadle.plan.ops import OPS
from treadle.plan.params import (
    AttentionParams,
    EmbeddingParams,
    LayerNormParams,
    LMHeadParams,
    QKNorm,
    ResidualAddParams,
    RMSNormParams,
    RopeStyle,
    unpack,
)
from treadle.plan.views import StepLimits, TensorView


def _embedding(op: Bound, step: Step) -> F32:
    params, w = cast(EmbeddingParams, op.params), op.weights
    ids = cast(I32, step.input(op))
    types = cast(I32, step.input(op, 1)) if len(op.inputs) > 1 and op.inputs[1] is not None else None
    rows = step.positions + np.int32(params.position_offset)
    return ops.embedding(ids, cast(F32, w["table"]), params.scale, rows, w["positions"], types, w["types"])


def _rmsnorm(op: Bound, step: Step) -> F32:
    params = cast(RMSNormParams, op.params)
    return ops.rmsnorm(step.input(op), op.weights["gain"], params.eps, params.gain_offset)


def _layernorm(op: Bound, step: Step) -> F32:
    params = cast(LayerNormParams, op.params)
    return ops.layernorm(step.input(op), op.weights["gain"], op.weights["bias"], params.eps, params.gain_offset)


def _residual_add(op: Bound, step: Step) -> F32:
    return ops.residual_add(step.input(op), step.input(op, 1), cast(ResidualAddParams, op.params).scale)


def _lm_head(op: Bound, step: Step) -> F32:
    params = cast(LMHeadParams, op.params)
    x = step.input(op)[step.context.sampled_rows]
    return ops.lm_head(x, cast(F32, op.weights["weight"]), op.weights["bias"], params.scale, params.softcap)


def _attention(op: Bound, step: Step) -> F32:
    """Projections of all rows, then each slot's rows over that slot's keys."""
    params, w = cast(AttentionParams, op.params), op.weights
    x = step.input(op)
    q = _head_norm(_projection(x, w, "q", params), params, w["q_norm"], params.num_heads)
    k = _head_norm(_projection(x, w, "k", params), params, w["k_norm"], params.num_kv_heads)
    v = _projection(x, w, "v", params).reshape(len(x), params.num_kv_heads, params.v_head_dim)
    if (inv_freq := w["rope_inv_freq"]) is not None:
        interleaved = params.rope_style == RopeStyle.INTERLEAVED
        q = ops.rope(q, step.positions, inv_freq, interleaved, params.rope_scale)
        k = ops.rope(k, step.positions, inv_freq, interleaved, params.rope_scale)
    mixed = np.empty((len(x), params.num_heads, params.v_head_dim), np.float32)
    start = 0
    for slot, count in enumerate(step.context.query_lens.tolist()):
        rows = slice(start, start + count)
        keys, values = with_past(op, step, slot, params.kv_dtype, (k[rows], v[rows]))
        mixed[rows] = ops.attention(
            q[rows],
            keys,
            values,
            step.positions[rows],
            np.arange(len(keys), dtype=np.int32),
            params.scale,
            bool(params.causal),
            params.window,
            params.softcap,
            w["sinks"],
            w["slopes"],
        )
        start += count
    flat = mixed.reshape(len(x), -1)
    if params.output_gate:
        flat = ops.gate_output(flat, x, cast(F32, w["gate"]))
    return ops.linear(flat, cast(F32, w["o"]), w["o_bias"])


def _projection(x: F32, w: Mapping[str, F32 | None], name: str, params: AttentionParams) -> F32:
    y = ops.linear(x, cast(F32, w[name]), w[f"{name}_bias"])
    return np.clip(y, -params.qkv_clip, params.qkv_clip) if params.qkv_clip else y


def _head_norm(y: F32, params: AttentionParams, gain: F32 | None, heads: int) -> F32:
    """Normalised as the params say; [rows, heads, head_dim]."""
    eps, offset, shape = params.qk_norm_eps, params.qk_norm_gain_offset, (len(y), heads, params.head_dim)
    if params.qk_norm == QKNorm.RMS_WHOLE:
        return ops.rmsnorm(y, gain, eps, offset).reshape(shape)
    if params.qk_norm == QKNorm.RMS_PER_HEAD:
        return ops.rmsnorm(y.reshape(shape), gain, eps, offset)
    if params.qk_norm == QKNorm.LAYERNORM_PER_HEAD:
        return ops.layernorm_per_head(y.reshape(shape), cast(F32, gain), eps, offset)
    return y.reshape(shape)


_WEIGHTS: Final = frozenset(DType) - {DType.I8, DType.U8, DType.I32, DType.I64}
_NATIVE: Final = AdapterCapability(dtypes=_WEIGHTS)
_PER_SLOT: Final = AdapterCapability(dtypes=_WEIGHTS, batch=BatchSupport.PER_SLOT)

TABLE: Final[AdapterTable[Adapter]] = AdapterTable(
    "reference",
    {
        Opcode.EMBEDDING: (_embedding, _NATIVE),
        Opcode.RMSNORM: (_rmsnorm, _NATIVE),
        Opcode.LAYERNORM: (_layernorm, _NATIVE),
        Opcode.MULTIHEAD_ATTENTION: (_attention, _PER_SLOT),
        Opcode.MLA_ATTENTION: (mla_attention, _PER_SLOT),
        Opcode.SWIGLU: (mlp.swiglu, _NATIVE),
        Opcode.MOE: (mlp.moe, _NATIVE),
        Opcode.MAMBA_MIXER: (mixers.mamba, _PER_SLOT),
        Opcode.SHORTCONV: (mixers.shortconv, _PER_SLOT),
        Opcode.GATED_DELTA_NET: (mixers.gated_delta_net, _PER_SLOT),
        Opcode.RESIDUAL_ADD: (_residual_add, _NATIVE),
        Opcode.LM_HEAD: (_lm_head, _NATIVE),
        Opcode.POOL: (pool.pool, _NATIVE),
    },
)
CLAIMED: Final = frozenset(
    {
        Opcode.EMBEDDING,
        Opcode.RMSNORM,
        Opcode.LAYERNORM,
        Opcode.MULTIHEAD_ATTENTION,
        Opcode.MLA_ATTENTION,
        Opcode.SWIGLU,
        Opcode.MOE,
        Opcode.MAMBA_MIXER,
        Opcode.SHORTCONV,
        Opcode.GATED_DELTA_NET,
        Opcode.RESIDUAL_ADD,
        Opcode.LM_HEAD,
        Opcode.POOL,
    }
)
assert TABLE.claimed() == CLAIMED, "the reference table is incomplete"


def choose(logits: F32, sampling: Sampling) -> None:
    """Fills in the answers that `sampling` asks of logits [sampled, columns]."""
    edits = {edit.row: edit for edit in sampling.edits}
    for i, record in enumerate(sampling.rows):
        if record["chooses"]:
            _choose_row(logits[i], i, record, edits.get(i), sampling)


def _choose_row(row: F32, i: int, record: Any, edit: RowEdits | None, sampling: Sampling) -> None:
    edited = row if edit is None or not np.isfinite(row.max()) else _edited(row, record, edit)
    best = int(edited.argmax())  # the first NaN where there is one
    sampling.best[i], sampling.chosen[i] = edited[best], best
    if not np.isfinite(edited[best]):
        return
    if record["temperature"] > 0:
        random = ops.random_bits(int(record["seed"]), int(record["stream"]), int(record["position"]))
        bounds = int(record["top_k"]), float(record["top_p"]), float(record["min_p"])
        sampling.chosen[i] = ops.draw(edited, random, float(record["temperature"]), *bounds)
    if record["logprobs"] >= 0:
        found = ops.log_probabilities(row, int(sampling.chosen[i]), int(record["logprobs"]))
        for k, (column, value, rank) in enumerate(found):
            sampling.listed_ids[i, k], sampling.listed_ranks[i, k] = column, rank
            sampling.listed_logprobs[i, k] = value


def _edited(row: F32, record: Any, edit: RowEdits) -> F32:
    row = row.copy()
    row[edit.bias_ids] += edit.bias
    row[edit.forbidden] = -np.inf
    penalties = (float(record[f"{name}_penalty"]) for name in ("repetition", "frequency", "presence"))
    row[edit.seen] = ops.penalised(row[edit.seen], edit.counts, *penalties)
    return row


class ReferenceProgram:
    """A plan as a list of bound instructions, run one after another."""

    def __init__(self, request: LinkRequest) -> None:
        plan = request.compiled.plan
        self._registers = tuple(
            Register(request.registers[request.mapping.buffer_of[r]], spec)
            for r, spec in enumerate(request.compiled.register_specs)
        )
        self._inputs = tuple(self._registers[r] for r in plan.inputs)
        self._outputs = tuple(self._registers[r] for r in plan.outputs)
        self._ops = tuple(_bind(instruction, request, self._registers) for instruction in plan.instructions)
        self.covers = tuple(range(i, i + 1) for i in range(len(self._ops)))
        self._cancelled = threading.Event()
        self._running = False

    def run(self, context: ExecutionContext, sampling: Sampling | None = None) -> tuple[F32, ...]:
        """One step; see `BoundProgram.run`. Raises InvalidBatchSize, Cancelled."""
        context.check()
        rows = context.rows
        sizes = {Symbol.ROWS: rows, Symbol.BATCH: context.batch_size, Symbol.SAMPLED: len(context.sampled_rows)}
        starts = np.repeat(np.cumsum(context.query_lens) - context.query_lens, context.query_lens)
        positions = np.arange(rows) - starts + np.repeat(context.positions, context.query_lens)
        step = Step(context, {int(key): size for key, size in sizes.items()}, positions.astype(np.int32))
        for register, value in zip(self._inputs, context.inputs, strict=True):
            register.view(step.sizes)[...] = value
        self._cancelled.clear()
        self._running = True
        try:
            for index, op in enumerate(self._ops):
                if self._cancelled.is_set():
                    raise Cancelled("the step was cancelled")
                began = time.perf_counter_ns()
                op.output.view(step.sizes)[...] = TABLE.get(op.opcode)(op, step)
                if context.counters is not None:
                    _count(op, step, context.counters, index, time.perf_counter_ns() - began)
        finally:
            self._running = False
        outputs = tuple(cast(F32, register.view(step.sizes)) for register in self._outputs)
        if sampling is not None:
            choose(outputs[0], sampling)
        return outputs

    def cancel(self) -> None:
        if self._running:
            self._cancelled.set()


def _bind(instruction: Instruction, request: LinkRequest, registers: tuple[Register, ...]) -> Bound:
    compiled = request.compiled
    spec = OPS[instruction.opcode]
    weights = {
        slot.name: None if index == NO_WEIGHT else _weight(request, index)
        for slot, index in zip(spec.weights, instruction.weights, strict=True)
    }
    state = instruction.state_block_id
    page_tokens = {d.id: d.page_tokens for d in compiled.plan.state_descs}
    return Bound(
        opcode=instruction.opcode,
        params=unpack(compiled.param_blocks[cast(int, instruction.param_block_id)]),
        inputs=tuple(None if r == NO_REGISTER else registers[r] for r in instruction.inputs),
        output=registers[instruction.outputs[0]],
        weights=weights,
        state=None if state is None else request.states[state],
        page_tokens=0 if state is None else page_tokens[state],
    )


def _weight(request: LinkRequest, index: int) -> F32:
    shape = request.compiled.weight_bindings[index].shape
    return request.weights[index][: 4 * int(np.prod(shape))].view(np.float32).reshape(shape)


def _count(op: Bound, step: Step, counters: Counters, index: int, nanoseconds: int) -> None:
    counters.dispatches[op.opcode] = counters.dispatches.get(op.opcode, 0) + 1
    capability = TABLE.capabilities[op.opcode]
    if capability is not None and capability.batch is BatchSupport.PER_SLOT and step.context.batch_size > 1:
        counters.per_slot_fallbacks += 1
    planned = sum(w.nbytes for w in op.weights.values() if w is not None)
    counters.planned_bytes += planned
    counters.ran(index, op.opcode, nanoseconds, planned)


class ReferenceBackend:
    """Runs any plan of the claimed ops on NumPy. `decode`: values of a stored tensor, f32 in its shape."""

    name: Final = "reference"
    table: Final = TABLE

    def __init__(self, decode: Callable[[TensorView], F32]) -> None:
        self._decode = decode

    def weight_bytes(self, binding: WeightBinding, dtype: DType) -> int:
        """Weights are held as f32."""
        return aligned(4 * int(np.prod(binding.shape, dtype=np.int64)))

    def register_bytes(self, spec: RegisterSpec, limits: StepLimits) -> int:
        sizes = limits.sizes()
        count = int(np.prod([sizes[Symbol(n)] if n < 0 else n for n in spec.shape], dtype=np.int64))
        return aligned(count * NUMPY[spec.dtype].itemsize)

    def workspace_bytes(self, compiled: CompiledPlan, dtypes: Mapping[int, DType], limits: StepLimits) -> int:
        """None of its own: NumPy's temporaries come and go on the heap."""
        return 0

    def pack(self, binding: WeightBinding, view: TensorView, out: Bytes) -> None:
        values = self._decode(view)
        out[: values.nbytes].view(np.float32)[:] = values.reshape(-1)

    def packing(self, dtypes: Iterable[DType]) -> None:
        """Decoded to f32, several times the file's size: nothing worth keeping."""

    def checksum(self, data: Bytes) -> int:
        return zlib.crc32(data.data)

    def link(self, request: LinkRequest) -> ReferenceProgram:
        return ReferenceProgram(request)

    def kernels(self) -> str:
        folders = ((Path(ops.__file__).parent, "*.py"), (Path(__file__).parent, "reference*.py"))
        return code_hash([file for folder, names in folders for file in sorted(folder.glob(names))])

    def describe(self) -> Mapping[str, str | int]:
        return {"isa": "numpy", "threads": 1, "numerics": "exact"}
