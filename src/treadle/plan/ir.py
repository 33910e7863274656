"""The typed plan: every structure that a plan file carries, and nothing a backend adds to it.

Plans are pure data (frozen msgspec structs). Shapes are symbolic over the step: see `Symbol`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, TypeVar

import msgspec

CONTRACT_VERSION: Final = 1
MAX_RANK: Final = 4
MAX_REGISTERS: Final = 0xFFFE
MAX_INSTRUCTIONS: Final = 8192
MAX_NAME: Final = 512
MAX_DIAGNOSTICS: Final = 256
MAX_DIAGNOSTIC: Final = 1024
NO_REGISTER: Final = 0xFFFF
"""Stands in `Instruction.inputs` where an optional input is absent."""
NO_WEIGHT: Final = 0xFFFFFFFF
"""Stands in `Instruction.weights` where an optional weight is absent."""


class DType(IntEnum):
    """Element types. Block-quantised types carry the layout that ggml gives them. Numbers never change."""

    F32 = 0
    F16 = 1
    BF16 = 2
    I8 = 3
    U8 = 4
    I32 = 5
    I64 = 6
    Q4_0 = 32
    Q4_1 = 33
    Q5_0 = 34
    Q5_1 = 35
    Q8_0 = 36
    Q2_K = 40
    Q3_K = 41
    Q4_K = 42
    Q5_K = 43
    Q6_K = 44
    IQ4_NL = 48
    IQ4_XS = 49
    MXFP4 = 50


class Opcode(IntEnum):
    """Macro-ops of contract v1. Numbers never change and are never reused; 128-255 belong to backends."""

    RMSNORM = 0
    MULTIHEAD_ATTENTION = 1
    SWIGLU = 2
    MOE = 3
    MAMBA_MIXER = 4
    SHORTCONV = 5
    MLA_ATTENTION = 6
    EMBEDDING = 7
    RESIDUAL_ADD = 8
    GATED_DELTA_NET = 9
    LAYERNORM = 10
    LM_HEAD = 11
    POOL = 12
    VISION_PATCH_EMBED = 16
    VISION_SPATIAL_MERGE = 17
    VISION_DEEPSTACK_EXTRACT = 18
    VISION_SCATTER = 19


FIRST_BACKEND_OPCODE: Final = 128


class Stage(IntEnum):
    """The programs that one model may consist of."""

    VISION_ENCODE = 0
    SCATTER = 1
    PREFILL = 2
    DECODE = 3
    ENCODE = 4


class Symbol(IntEnum):
    """Sizes known only at a step. They stand as negative numbers in shapes; positive numbers are constants."""

    ROWS = -1
    """All new rows of the ragged step; in a vision stage the image patches."""
    BATCH = -2
    """Active slots of the step."""
    SAMPLED = -3
    """Rows for which logits are wanted."""
    MERGED = -4
    """Vision rows after spatial merging."""


class Layout(IntEnum):
    ROW_MAJOR = 0


class Container(IntEnum):
    """The doors through which weights come. A binding names its tensors for each of them."""

    SAFETENSORS = 0
    GGUF = 1


class TransformKind(IntEnum):
    """How a logical weight is cut out of the tensors that a container stores. Row = first axis."""

    ROPE_ROWS_FROM_INTERLEAVED = 0
    """args (heads,): undo the q/k row permutation that GGUF applies to llama, head by head."""
    SLICE_ROWS = 1
    """args (start, stop)."""
    TRANSPOSE = 2
    """The last two axes."""
    CONCAT_ROWS = 3
    STACK = 4
    """Several equal tensors become one with a new first axis (experts)."""
    SLICE_HEAD_ROWS = 5
    """args (heads, start, stop): of each head's rows, those in [start, stop) (fused interleaved projections)."""
    SLICE_FIRST = 6
    """args (start, stop) along the second axis of a stacked tensor (experts' fused gate and up)."""
    RESHAPE = 7
    """args: the new shape."""
    NEGATIVE_EXP = 8
    """x -> -exp(x) (A_log of state-space models)."""
    ADD_CONSTANT = 9
    """x -> x + args[0] (norm gains that a container stores with the offset folded in: -1 takes it out)."""
    STRIDE_ROWS = 10
    """args (start, step): every step-th row from start (interleaved gate and up)."""
    REGROUP_HEAD_ROWS = 11
    """args (heads, size...): rows lie head by head, each head's in parts of these sizes; they come out part by
    part, each with all heads (fused projections, cut up by SLICE_ROWS afterwards)."""
    JOIN_TURNED_HEADS = 12
    """Two tensors [heads, cols, n] and [heads, m, cols] become rows [heads * (n + m), cols]: of each head, the first
    one's columns above the second one's rows. Blocks cannot be turned: quantised tensors become f32."""


class GeneratorKind(IntEnum):
    """Constant weights computed at bind instead of read. All are f32."""

    ROPE_DEFAULT = 0
    """args (dim, theta): theta^(-2i/dim)."""
    ROPE_LINEAR = 1
    """args (dim, theta, factor)."""
    ROPE_LLAMA3 = 2
    """args (dim, theta, factor, low_freq_factor, high_freq_factor, original_positions)."""
    ROPE_YARN = 3
    """args (dim, theta, factor, beta_fast, beta_slow, original_positions, truncate)."""
    ROPE_FACTORS = 4
    """args (dim, theta); the source's tensor divides the default frequencies."""
    ROPE_FACTOR_LIST = 5
    """args (dim, theta, factor...): a list in the config divides the default frequencies."""
    ALIBI_SLOPES = 6
    """args (heads,)."""


class Lifecycle(IntEnum):
    SLOT_PERSISTENT = 0
    REQUEST_SCOPED = 1
    STEP_SCOPED = 2


class Struct(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of all plan structures: immutable, encoded as arrays, strict about extra fields."""


T = TypeVar("T")
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
# Tuples that a hostile file cannot make long; the decoder stops at the count, before it reads the items.
UpTo16 = Annotated[tuple[T, ...], msgspec.Meta(max_length=16)]
UpTo64 = Annotated[tuple[T, ...], msgspec.Meta(max_length=64)]
UpTo256 = Annotated[tuple[T, ...], msgspec.Meta(max_length=256)]
UpTo4096 = Annotated[tuple[T, ...], msgspec.Meta(max_length=4096)]
PerInstruction = Annotated[tuple[T, ...], msgspec.Meta(max_length=MAX_INSTRUCTIONS)]
PerRegister = Annotated[tuple[T, ...], msgspec.Meta(max_length=MAX_REGISTERS)]
Bits = Annotated[bytes, msgspec.Meta(max_length=(MAX_REGISTERS + 7) // 8)]
Payload = Annotated[bytes, msgspec.Meta(max_length=1024)]


class Transform(Struct, frozen=True):
    kind: TransformKind
    args: UpTo16[int] = ()


class Source(Struct, frozen=True):
    """Where one container keeps a weight: the tensors' names, and the transforms applied in order."""

    container: Container
    tensors: UpTo4096[Name]
    transforms: UpTo16[Transform] = ()


class Generator(Struct, frozen=True):
    kind: GeneratorKind
    args: UpTo4096[float]


class WeightBinding(Struct, frozen=True):
    """A logical weight. `shape` is what the op sees (rows first); bytes never enter a plan.

    Exactly one of two kinds: read (`sources` filled, no `generator`) or generated (`generator` set; `sources`
    then names the tensor that the generator reads, if it reads one).
    """

    index: int
    name: Name
    shape: UpTo16[int]
    dtypes: UpTo64[DType]
    sources: UpTo16[Source] = ()
    generator: Generator | None = None


class RegisterSpec(Struct, frozen=True):
    """dtype and symbolic shape of one logical register; constants > 0, `Symbol` values < 0."""

    dtype: DType
    shape: UpTo16[int]
    layout: Layout = Layout.ROW_MAJOR

    @property
    def rank(self) -> int:
        return len(self.shape)


class Instruction(Struct, frozen=True):
    """One macro-op. Operands stand in the order of the op's `OpSpec`; weights index the plan's bindings."""

    opcode: Opcode
    inputs: UpTo16[int]
    outputs: UpTo16[int]
    weights: UpTo64[int] = ()
    param_block_id: int | None = None
    state_block_id: int | None = None


class ParamBlock(Struct, frozen=True):
    """An op's parameters as the packed bytes that adapters cast and read. Layouts: `plan/params.py`."""

    abi_version: int
    opcode: Opcode
    payload: Payload


class StateDescriptor(Struct, frozen=True):
    """State of one instruction. `size_bytes` is one page; `page_tokens` 0 means one page for the slot's life."""

    id: int
    size_bytes: int
    align_bytes: int
    zero_init: bool
    lifecycle: Lifecycle
    page_tokens: int


class ExecutionPlan(Struct, frozen=True):
    """Instructions in execution order. Registers are assigned once; `inputs` are written by the caller."""

    instructions: PerInstruction[Instruction]
    register_count: int
    state_descs: PerInstruction[StateDescriptor]
    inputs: UpTo256[int]
    outputs: UpTo256[int]


class LivenessMap(Struct, frozen=True):
    """`register_last_read[r]`: index of the last instruction that reads r; the instruction count for plan
    outputs; the writer's own index where nobody reads it (-1 for an unread plan input).
    `kill_after_instruction[i]`: little-endian bitset (ceil(registers/8) bytes) of registers dead after i."""

    register_last_read: PerRegister[int]
    kill_after_instruction: PerInstruction[Bits]


class CompiledPlan(Struct, frozen=True):
    stage: Stage
    plan: ExecutionPlan
    param_blocks: PerInstruction[ParamBlock]
    weight_bindings: PerRegister[WeightBinding]
    register_specs: PerRegister[RegisterSpec]
    liveness: LivenessMap
    peak_registers: int
    diagnostics: UpTo256[Annotated[str, msgspec.Meta(max_length=MAX_DIAGNOSTIC)]] = ()


class Handoff(Struct, frozen=True):
    """Registers that one stage leaves for the next. `lifetime`: when the owner may reuse them."""

    source: Stage
    target: Stage
    source_register: int
    target_register: int
    dtype: DType
    layout: Layout
    owner: Stage
    lifetime: Lifecycle
    sync: bool
    """A backend that records a graph evaluates it here."""


class ModelFacts(Struct, frozen=True):
    """What the engine must know of a model to serve it, besides its programs."""

    model_type: Name
    vocab_size: int
    hidden_size: int
    max_positions: int
    layers: int


class ModelPlans(Struct, frozen=True):
    """All programs of one model, with what they were compiled from."""

    facts: ModelFacts
    config_hash: Name
    compiler_version: Name
    vision_encode: CompiledPlan | None = None
    scatter: CompiledPlan | None = None
    prefill: CompiledPlan | None = None
    decode: CompiledPlan | None = None
    encode: CompiledPlan | None = None
    handoffs: UpTo64[Handoff] = ()

    def stages(self) -> tuple[CompiledPlan, ...]:
        """The programs that are present, in the order of `Stage`."""
        every = (self.vision_encode, self.scatter, self.prefill, self.decode, self.encode)
        return tuple(plan for plan in every if plan is not None)
