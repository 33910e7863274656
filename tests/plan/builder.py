"""Builds well-formed plans by hand or at random, op by op, from the op table's shape words."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from treadle.plan.ir import (
    NO_REGISTER,
    NO_WEIGHT,
    CompiledPlan,
    Container,
    DType,
    ExecutionPlan,
    Generator,
    GeneratorKind,
    Instruction,
    Lifecycle,
    ModelFacts,
    ModelPlans,
    RegisterSpec,
    Source,
    Stage,
    StateDescriptor,
    WeightBinding,
)
from treadle.plan.liveness import analyse
from treadle.plan.ops import OPS, SYMBOLS, StateRule
from treadle.plan.param_struct import Params
from treadle.plan.params import (
    AttentionParams,
    EmbeddingParams,
    LMHeadParams,
    ResidualAddParams,
    RMSNormParams,
    SwiGLUParams,
)


class Builder:
    """Collects instructions; `finish` adds liveness. Every weight gets its own binding."""

    def __init__(self, stage: Stage, page_tokens: int = 64) -> None:
        self.stage = stage
        self.page_tokens = page_tokens
        self.specs: list[RegisterSpec] = []
        self.inputs: list[int] = []
        self.instructions: list[Instruction] = []
        self.blocks = []
        self.bindings: list[WeightBinding] = []
        self.states: list[StateDescriptor] = []

    def register(self, dtype: DType, *shape: int) -> int:
        self.specs.append(RegisterSpec(dtype, shape))
        return len(self.specs) - 1

    def input(self, dtype: DType, *shape: int) -> int:
        self.inputs.append(self.register(dtype, *shape))
        return self.inputs[-1]

    def op(self, params: Params, inputs: Iterable[int | None], slots: str = "", **sizes: int) -> int:
        """Appends an instruction and returns its output register. `slots`: the optional weights that are there;
        `sizes`: words that neither the params nor the inputs give."""
        spec = OPS[params.OPCODE]
        inputs = tuple(NO_REGISTER if r is None else r for r in inputs)
        words = {**sizes, **{word: size for word, size in params.dims().items() if size}}
        for port, r in zip(spec.inputs, inputs, strict=True):
            if r != NO_REGISTER:
                for word, size in zip(port.shape, self.specs[r].shape, strict=True):
                    words.setdefault(word, size)
        (port,) = spec.outputs
        out = self.register(port.dtype, *(int(SYMBOLS[w]) if w in SYMBOLS else words[w] for w in port.shape))
        present = slots.split()
        weights = [
            self._bind(f"{len(self.instructions)}.{slot.name}", tuple(words[w] for w in slot.shape))
            if not slot.optional or slot.name in present
            else NO_WEIGHT
            for slot in spec.weights
        ]
        block = params.pack()
        if block not in self.blocks:
            self.blocks.append(block)
        state = None
        if spec.state is not StateRule.NONE and params.stateful():
            state = len(self.states)
            pages = self.page_tokens if spec.state is StateRule.PAGED else 0
            size = params.state_page_bytes(pages)
            self.states.append(StateDescriptor(state, size, 64, not pages, Lifecycle.SLOT_PERSISTENT, pages))
        self.instructions.append(
            Instruction(params.OPCODE, inputs, (out,), tuple(weights), self.blocks.index(block), state)
        )
        return out

    def _bind(self, name: str, shape: tuple[int, ...]) -> int:
        index = len(self.bindings)
        if name.endswith("rope_inv_freq"):
            generator = Generator(GeneratorKind.ROPE_DEFAULT, (2.0 * shape[0], 10000.0))
            self.bindings.append(WeightBinding(index, name, shape, (DType.F32,), generator=generator))
        else:
            source = Source(Container.SAFETENSORS, (f"layers.{name}.weight",))
            self.bindings.append(WeightBinding(index, name, shape, (DType.F32, DType.F16, DType.Q8_0), (source,)))
        return index

    def finish(self, *outputs: int) -> CompiledPlan:
        plan = ExecutionPlan(
            tuple(self.instructions), len(self.specs), tuple(self.states), tuple(self.inputs), tuple(outputs)
        )
        liveness, peak = analyse(plan)
        return CompiledPlan(
            self.stage,
            plan,
            tuple(self.blocks),
            tuple(self.bindings),
            tuple(self.specs),
            liveness,
            peak,
        )


def relive(compiled: CompiledPlan) -> CompiledPlan:
    """The plan with its liveness recomputed after a change."""
    liveness, peak = analyse(compiled.plan)
    return msgspec.structs.replace(compiled, liveness=liveness, peak_registers=peak)


FACTS = ModelFacts("tiny", vocab_size=96, hidden_size=32, max_positions=128, layers=2)


def model(**stages: CompiledPlan) -> ModelPlans:
    return ModelPlans(FACTS, "0" * 64, "0.1.0", **stages)


def decoder(stage: Stage = Stage.DECODE, layers: int = 2) -> CompiledPlan:
    """A small llama: grouped-query attention with rope, gated MLP, tied to nothing."""
    b = Builder(stage)
    ids = b.input(DType.I32, int(SYMBOLS["rows"]))
    x = b.op(EmbeddingParams(vocab=96), [ids, None], hidden=32)
    attention = AttentionParams(4, 2, 8, 8, scale=8**-0.5, rotary_dim=8)
    for _ in range(layers):
        x = _residual(b, x, b.op(attention, [b.op(RMSNormParams(1e-5), [x], "gain")], "rope_inv_freq"))
        x = _residual(b, x, b.op(SwiGLUParams(64), [b.op(RMSNormParams(1e-5), [x], "gain")], "gate"))
    return b.finish(b.op(LMHeadParams(96), [b.op(RMSNormParams(1e-5), [x], "gain")]))


def _residual(b: Builder, x: int, y: int) -> int:
    return b.op(ResidualAddParams(), [x, y])
