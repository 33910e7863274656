"""Where everything is put together: a model's name becomes a checkpoint, plans, a bound backend and an engine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.errors import (
    BackendUnavailable,
    InvalidInstructionBinding,
    InvalidRequest,
    OutOfMemoryQuote,
    TreadleError,
    UnsupportedOpcode,
)
from treadle.formats.chat_template import ChatTemplate
from treadle.formats.gguf import GGUFFile
from treadle.formats.hub import (
    KNOWN_MODELS,
    CachedModel,
    KnownModel,
    ResolvedModel,
    home_directory,
    list_models,
    pull,
    resolve,
)
from treadle.formats.tensors import dequantise
from treadle.formats.tokenizer import Tokenizer
from treadle.inference.backends import BACKENDS, BackendOptions, create
from treadle.inference.backends.base import Backend, Numerics
from treadle.inference.certificates import CertificateStore, Identity
from treadle.inference.core import EngineCore
from treadle.inference.cost import InstructionCost, StepCost, instruction_costs, step_cost
from treadle.inference.encoder import Encoder, Tokens
from treadle.inference.executor import Executor, Layout, MemoryQuote, Progress, lay_out
from treadle.inference.inspection import Inspector
from treadle.inference.memory import available_bytes
from treadle.inference.state import StatePool
from treadle.inference.weight_cache import (
    LIMIT_VARIABLE,
    CachedWeights,
    Place,
    SourceFile,
    WeightCache,
    limit_from,
    source_name,
)
from treadle.models.checkpoint import Checkpoint, open_checkpoint, open_synthetic
from treadle.models.compile import CompileOptions
from treadle.models.quantisation import FLOAT_TYPES, QUANTISED_TYPES, Quantisation
from treadle.models.synthetic import is_synthetic
from treadle.plan.ir import DType, ModelPlans, Stage
from treadle.plan.views import StepLimits, TensorView

if TYPE_CHECKING:
    from treadle.models.onboard import Onboarding
    from treadle.plan.diff import Difference

__all__ = [
    "KNOWN_MODELS",
    "CachedModel",
    "CachedWeights",
    "Description",
    "Engine",
    "EngineInfo",
    "EngineOptions",
    "KnownModel",
    "MemoryQuote",
    "QuantizeReport",
    "ResolvedModel",
    "certificates",
    "describe",
    "list_models",
    "load",
    "onboard",
    "plan_data",
    "plan_differences",
    "pull",
    "quantize_file",
    "resolve",
    "weight_cache",
    "write_synthetic",
]

REFUSALS: Final = (UnsupportedOpcode, InvalidInstructionBinding, BackendUnavailable)
"""How a backend says, before anything runs, that it cannot run a plan."""
DEFAULT_MAX_MODEL_LEN: Final = 8192
DEFAULT_STATE_TOKENS: Final = 16384
DEFAULT_SEQUENCES: Final = 8
DEFAULT_ENCODED: Final = 64
KV_DTYPES: Final[Mapping[str, DType]] = {
    "f32": DType.F32,
    "f16": DType.F16,
    "bf16": DType.BF16,
    "q8_0": DType.Q8_0,
}
DEFAULT_KV_DTYPES: Final[Mapping[Numerics, str]] = {"fast": "f16", "bf16": "bf16", "exact": "f32"}
_HASH_BYTES: Final = 32


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is to be run. Memory follows from these and the model alone, not from the machine's state."""

    backend: str = "cpu"
    threads: int | None = None
    """None: as many as the process may use."""
    numerics: Numerics = "fast"
    max_model_len: int | None = None
    """Tokens of the longest sequence. None: the model's own limit, at most 8192."""
    max_num_seqs: int | None = None
    """Sequences in one step. None: 8, or 64 of an encoder."""
    max_num_batched_tokens: int = 512
    """Rows of one step; longer prompts are fed in chunks. An encoder's step holds the longest sequence whatever this
    says."""
    kv_dtype: str | None = None
    """f32, f16, bf16 or q8_0. None: by DEFAULT_KV_DTYPES."""
    max_num_logits: int | None = None
    """Rows of logits in one step. None: max_num_seqs."""
    state_tokens: int | None = None
    """Tokens whose state all sequences hold together. None: max_num_seqs full ones, at most 16384 or one full one."""
    quantize: str | None = None
    """Block type that the matrices of an f32, f16 or bf16 checkpoint are encoded to as they are loaded."""
    family_file: str | None = None
    """A Python file that describes the model's family; it is run, and stands in for the families treadle brings."""
    allow_per_slot: bool = False
    """Bind a backend that runs some ops slot by slot."""
    disable_fusion: tuple[str, ...] = ()
    """The backend's own fusions that are left out: slower, and on cpu the same bits."""
    fallback: str | None = None
    """A backend for the whole plan where `backend` cannot run it; without one that is refused."""
    weight_cache: bool = True
    """Map packed weights that an earlier start kept on disk, and keep those of this one."""

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_num_logits", "state_tokens"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InvalidRequest(f"{name} must be a positive integer, found {value!r}")
        if self.fallback is not None and (self.fallback not in BACKENDS or self.fallback == self.backend):
            others = ", ".join(name for name in BACKENDS if name != self.backend)
            raise InvalidRequest(f"fallback must be another backend ({others}), found {self.fallback!r}")
        if self.kv_dtype is not None and self.kv_dtype not in KV_DTYPES:
            raise InvalidRequest(f"kv_dtype must be one of {', '.join(KV_DTYPES)}, found {self.kv_dtype!r}")
        if self.quantize is not None and self.quantize not in QUANTISED_TYPES:
            raise InvalidRequest(f"quantize must be one of {', '.join(QUANTISED_TYPES)}, found {self.quantize!r}")
        for name in ("max_num_batched_tokens", "max_num_logits"):
            value = getattr(self, name)
            if value is not None and value < self._sequences:
                raise InvalidRequest(f"{name} ({value}) must be at least max_num_seqs ({self._sequences})")

    @property
    def _sequences(self) -> int:
        return self.max_num_seqs or DEFAULT_SEQUENCES

    @property
    def compile_options(self) -> CompileOptions:
        default = DEFAULT_KV_DTYPES[self.numerics]
        return CompileOptions(kv_dtype=KV_DTYPES[self.kv_dtype or default])

    def limits(self, plans: ModelPlans, page_tokens: int) -> StepLimits:
        """The largest step. Raises InvalidRequest for a length that the model does not reach."""
        longest = plans.facts.max_positions
        length = self.max_model_len or min(longest, DEFAULT_MAX_MODEL_LEN)
        if length > longest:
            raise InvalidRequest(f"max_model_len ({length}) exceeds the model's {longest} positions")
        if plans.encode is not None:
            rows = max(self.max_num_batched_tokens, length)
            batch = self.max_num_seqs or min(DEFAULT_ENCODED, rows)
            return StepLimits(max_rows=rows, max_batch=batch, max_sampled=1, max_seq_len=length, state_pages=0)
        tokens = self.state_tokens or max(length, min(self._sequences * length, DEFAULT_STATE_TOKENS))
        return StepLimits(
            max_rows=self.max_num_batched_tokens,
            max_batch=self._sequences,
            max_sampled=self.max_num_logits or self._sequences,
            max_seq_len=length,
            state_pages=-(-tokens // page_tokens),
        )


class EngineInfo(msgspec.Struct, frozen=True):
    """What runs. `load_s`: from the call to the first request it could take."""

    model: str
    path: str
    backend: str
    isa: str
    threads: int
    numerics: str
    plan_hash: str
    instructions: int
    peak_registers: int
    plan_bytes: int
    max_model_len: int
    instead_of: str | None
    """Why the backend asked for does not run it, where this one is the fallback."""
    weights_mapped: bool
    """Whether the weights came packed from the weight cache."""
    load_s: float
    identity: Identity
    certified: bool
    """Whether a certificate says that these weights on this backend agreed with transformers."""


@dataclass(frozen=True)
class Description:
    """A compiled model that is not loaded: its plan as text and as plain data, and the memory it would take."""

    plans: ModelPlans
    info: EngineInfo
    layout: Layout

    @cached_property
    def memory_quote(self) -> MemoryQuote:
        return self.layout.quote()

    @cached_property
    def placement(self) -> dict[str, Any]:
        """Buffers, packed weights and bytes read, as plain data; see `placement.placement`."""
        from treadle.inference.placement import placement

        return placement(self.plans, self.layout)

    @property
    def plan_hash(self) -> str:
        return self.info.plan_hash

    def save_plan(self, path: Path, release: str | None = None) -> None:
        """Writes the plan file, for an earlier release where one is named. Raises OSError, InvalidRequest (a release
        that is later or reads another contract), InvalidParamBlockABI (the plan cannot be said in its versions)."""
        from treadle.plan.codec import save

        if release is None:
            save(self.plans, path)
            return
        from treadle import __version__
        from treadle.plan.downgrade import downgrade_params, versions_of
        from treadle.plan.versions import parse_release, windows

        if parse_release(release) > parse_release(__version__):
            raise InvalidRequest(f"release {release} is later than this one ({__version__})")
        versions = versions_of(release, windows())
        save(downgrade_params(self.plans, versions), path, versions)

    @cached_property
    def plan_text(self) -> str:
        from treadle.plan.dump import text

        return text(self.plans)

    @cached_property
    def plan_dict(self) -> dict[str, Any]:
        from treadle.plan.dump import as_dict

        return as_dict(self.plans)


class Text:
    """Text in and out of one model. The chat template is compiled when it is first needed."""

    def __init__(self, tokenizer: Tokenizer, template: Callable[[], ChatTemplate | None]) -> None:
        self.tokenizer = tokenizer
        self._read_template = template

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Text | None:
        """None where the checkpoint brings no tokenizer. Raises InvalidFile, UnsupportedModel."""
        path, tensors = checkpoint.path, checkpoint.tensors
        if isinstance(tensors, GGUFFile):
            if "tokenizer.ggml.model" not in tensors.metadata:
                return None
            tokenizer = Tokenizer.from_gguf(tensors.metadata)
            source = {key: value for key, value in tensors.metadata.items() if key == "tokenizer.chat_template"}
            return cls(tokenizer, lambda: ChatTemplate.from_gguf(source, tokenizer))
        if not (path / "tokenizer.json").is_file():
            return None
        return cls(Tokenizer.from_file(path), lambda: ChatTemplate.from_directory(path))

    @cached_property
    def template(self) -> ChatTemplate | None:
        return self._read_template()

    def encode(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt text of a conversation. Raises InvalidRequest where the model has no chat template."""
        if self.template is None:
            raise InvalidRequest("messages: this model has no chat template")
        return self.template.render(messages)

    def encode_whole(self, text: str, second: str | None, limit: int | None) -> Tokens:
        """A text, or a pair, with what the model expects around it; cut to `limit` tokens where that is given."""
        return Tokens(*self.tokenizer.encode_typed(text, second, limit))

    def encode_rendered(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt, add_special=False)


@dataclass(frozen=True, slots=True)
class OpCost:
    """One op of a bound program: the plan's instructions that it stands for, and their costs."""

    instructions: range
    costs: tuple[InstructionCost, ...]


@dataclass(frozen=True)
class Engine:
    """A loaded model: a `generator` of text or an `encoder`. `text` is None where the checkpoint has no tokenizer."""

    generator: EngineCore | None
    encoder: Encoder | None
    text: Text | None
    plans: ModelPlans
    read_info: Callable[[], EngineInfo]
    memory_quote: MemoryQuote
    memory_measured_bytes: int
    place: Place | None
    """The model's place in the weight cache; to be finished when the engine is done."""
    files: tuple[SourceFile, ...]
    """What the weights were read from."""
    layout: Layout
    executor: Executor
    numerics: Numerics

    @cached_property
    def cost(self) -> StepCost:
        """Of a decode step; made when it is asked for."""
        return step_cost(self.layout, self.numerics)

    def ops(self, *, decode: bool) -> tuple[OpCost, ...]:
        """What each op of a bound program, in order, stands for and must at least read and calculate."""
        first = Stage.PREFILL if self.encoder is None else Stage.ENCODE
        stage, program = (Stage.DECODE, -1) if decode else (first, 0)
        costs = instruction_costs(self.layout.programs[program], self.layout, self.numerics)
        return tuple(OpCost(covers, tuple(costs[i] for i in covers)) for covers in self.executor.covers(stage))

    @property
    def core(self) -> EngineCore:
        """The generator, which takes requests and steps. Raises InvalidRequest for an encoder."""
        if self.generator is None:
            raise InvalidRequest(
                f"{self.plans.facts.model_type} is an encoder, which generates no text; "
                "use LLM.embed or LLM.rerank (treadle embed, treadle rerank)"
            )
        return self.generator

    @property
    def embedder(self) -> Encoder:
        """The encoder. Raises InvalidRequest for a model without one."""
        if self.encoder is None:
            raise InvalidRequest(
                f"{self.plans.facts.model_type} generates text and pools nothing; "
                "embeddings and scores need an encoder, such as minilm"
            )
        return self.encoder

    def cancel(self) -> None:
        """From another thread: the running step raises Cancelled soon."""
        (self.generator or self.embedder).cancel()

    @cached_property
    def info(self) -> EngineInfo:
        """Made when it is asked for: the plan's hash takes longer than all that is in it."""
        return self.read_info()


def load(
    model: str | Path, options: EngineOptions, progress: Progress | None = None, inspector: Inspector | None = None
) -> Engine:
    """Opens, compiles, quotes, binds: the model is ready to take requests. `inspector`: gets all values.

    Raises ModelNotFound, NotInCache, InvalidFile, UnsupportedModel, InvalidWeights, UnsupportedOpcode,
    BackendUnavailable, OutOfMemoryQuote (before anything is allocated).
    """
    began = time.monotonic()
    quantisation = _quantisation(options.quantize, options.threads)
    found, checkpoint = _opened(model, quantisation, options)
    try:
        plans, layout, backend, instead = _laid_out(checkpoint, options, inspector)
        quote = layout.quote()
        _check_memory(quote, available_bytes())
        text_tools = Text.of(checkpoint)
        place = _place(checkpoint, found.name, layout, backend, quantisation) if options.weight_cache else None
        executor = Executor(layout, backend, checkpoint.weights, progress, place)
    finally:
        checkpoint.close()
    limits, files = layout.limits, _files(checkpoint)
    runner = executor if inspector is None else inspector.around(executor)
    generator = encoder = None
    if plans.encode is not None:
        encoder = Encoder(runner, plans.encode, plans.facts.vocab_size)
    else:
        pool = StatePool(layout.states, executor.states, limits.state_pages, limits.max_batch, limits.max_seq_len)
        codec = None if text_tools is None else text_tools.tokenizer
        generator = EngineCore(runner, pool, plans.facts.vocab_size, codec)
    load_s = time.monotonic() - began
    return Engine(
        generator=generator,
        encoder=encoder,
        text=text_tools,
        plans=plans,
        read_info=lambda: _info(
            found, plans, limits, backend, instead, files, options, executor.weights_mapped, load_s
        ),
        memory_quote=quote,
        memory_measured_bytes=executor.measured_bytes,
        place=place,
        files=files,
        layout=layout,
        executor=executor,
        numerics=options.numerics,
    )


def describe(model: str | Path, options: EngineOptions) -> Description:
    """Compiles and quotes without reading or allocating weights. Raises as `load`, but not OutOfMemoryQuote."""
    began = time.monotonic()
    found, checkpoint = _opened(model, _quantisation(options.quantize, options.threads), options)
    try:
        plans, layout, backend, instead = _laid_out(checkpoint, options)
    finally:
        checkpoint.close()
    seconds = time.monotonic() - began
    info = _info(found, plans, layout.limits, backend, instead, _files(checkpoint), options, False, seconds)
    return Description(plans, info, layout)


def plan_data(source: str | Path, options: EngineOptions) -> dict[str, Any]:
    """The plans of a model, or of a .plan file, as plain data. Raises as `describe`, and InvalidPlan."""
    path = Path(source)
    if not (path.is_file() and path.suffix == ".plan"):
        return describe(source, options).plan_dict
    from treadle.plan.codec import load as load_plan
    from treadle.plan.dump import as_dict

    return as_dict(load_plan(path))


def plan_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """What changes from one plan, as `plan_data` gives it, to another, in words."""
    from treadle.plan.diff import differences

    return differences(a, b)


def _opened(
    model: str | Path, quantisation: Quantisation | None, options: EngineOptions
) -> tuple[ResolvedModel, Checkpoint]:
    if is_synthetic(model):
        return ResolvedModel(str(model), Path(model), "gguf"), open_synthetic(str(model), quantisation)
    found = resolve(model)
    return found, open_checkpoint(found.path, quantisation, options.family_file)


class QuantizeReport(msgspec.Struct, frozen=True):
    """A file that `quantize_file` wrote. `tensor_types`: how many tensors have each type."""

    model: str
    path: str
    type: str
    tensor_types: dict[str, int]
    source_bytes: int
    file_bytes: int
    seconds: float


def quantize_file(
    model: str | Path,
    target: str | Path,
    dtype: str,
    *,
    threads: int | None = None,
    force: bool = False,
    allow_requantize: bool = False,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Writes a GGUF file of a model with its matrices as `dtype`; `progress` gets bytes written and bytes in all.

    `force`: replace a file that is there. `allow_requantize`: take matrices stored below q8_0. The file appears whole
    or not at all. Raises InvalidRequest, what opening a model raises, UnsupportedModel for what GGUF cannot say.
    """
    from treadle.models.export_gguf import export

    began = time.monotonic()
    path = Path(target)
    if dtype not in (*QUANTISED_TYPES, *FLOAT_TYPES):
        raise InvalidRequest(f"type must be one of {', '.join((*QUANTISED_TYPES, *FLOAT_TYPES))}, found {dtype!r}")
    if path.suffix != ".gguf":
        raise InvalidRequest(f"{path}: the file to write must be named .gguf")
    if path.is_dir() or (path.exists() and not force):
        raise InvalidRequest(f"{path} exists; --force replaces a file")
    if not path.parent.is_dir():
        raise InvalidRequest(f"{path.parent}: no such directory")
    found = resolve(model)
    checkpoint = open_checkpoint(found.path)
    try:
        quantisation = _quantisation(dtype, threads)
        assert quantisation is not None
        written = export(checkpoint, quantisation, path, allow_requantize=allow_requantize, progress=progress)
        source_bytes = sum(checkpoint.tensors.info(name).nbytes for name in checkpoint.tensors.names())
    finally:
        checkpoint.close()
    return QuantizeReport(
        model=found.name,
        path=str(path),
        type=dtype,
        tensor_types=written.types,
        source_bytes=source_bytes,
        file_bytes=path.stat().st_size,
        seconds=time.monotonic() - began,
    )


def onboard(model: str | Path) -> Onboarding:
    """What an unknown model folder, config.json or GGUF file shares with the known families.

    Raises ModelNotFound, NotInCache, InvalidFile, UnsupportedModel (no config that could be compared).
    """
    from treadle.models.onboard import examine

    path = Path(model)
    return examine(path if path.exists() else resolve(model).path)


def write_synthetic(model: str, path: str | Path) -> Path:
    """The model that "synthetic:FAMILY:SHAPE:TYPE" describes, as a GGUF file. Raises UnsupportedModel."""
    from treadle.models.export_synthetic import write_synthetic as write

    return write(model, path)


def _backend(options: EngineOptions, name: str) -> Backend:
    """`name`: the backend asked for, or its fallback, for which no fusion is left out."""
    fusions = frozenset(options.disable_fusion) if name == options.backend else frozenset()
    return create(name, BackendOptions(options.threads, options.numerics, _decode, fusions))


def _laid_out(
    checkpoint: Checkpoint, options: EngineOptions, inspector: Inspector | None = None
) -> tuple[ModelPlans, Layout, Backend, str | None]:
    """The plans, sized for the backend asked for; or for the fallback, whole, with why the other one refused.

    Raises what the backend refused with, naming the backends that would run the plans, where no fallback is given.
    """
    try:
        backend = _backend(options, options.backend)
        return *_compiled(checkpoint, backend, options, inspector), backend, None
    except REFUSALS as error:
        if options.fallback is None:
            others = [name for name in BACKENDS if name != options.backend and _runs(checkpoint, options, name)]
            hint = f"; --fallback {others[0]} runs it whole" if others else ""
            raise type(error)(f"{error}{hint}") from None
        reason = str(error)
    logging.getLogger("treadle").warning(
        "%s cannot run this plan (%s); all of it runs on %s, the fallback", options.backend, reason, options.fallback
    )
    backend = _backend(options, options.fallback)
    return *_compiled(checkpoint, backend, options, inspector), backend, reason


def _runs(checkpoint: Checkpoint, options: EngineOptions, name: str) -> bool:
    """Whether a backend would take the plans."""
    try:
        _compiled(checkpoint, _backend(options, name), msgspec.structs.replace(options, allow_per_slot=True))
    except TreadleError:
        return False
    return True


def _quantisation(name: str | None, threads: int | None) -> Quantisation | None:
    if name is None:
        return None
    from treadle.inference.backends.cpu_count import default_threads
    from treadle.inference.backends.cpu_encode import RowEncoder  # the native core, which not every backend needs

    return Quantisation(DType[name.upper()], RowEncoder(threads or default_threads()))


def _decode(view: TensorView) -> NDArray[np.float32]:
    return dequantise(np.ascontiguousarray(view.data).reshape(-1), view.dtype.name.lower(), view.shape)


def _compiled(
    checkpoint: Checkpoint, backend: Backend, options: EngineOptions, inspector: Inspector | None = None
) -> tuple[ModelPlans, Layout]:
    compile_options = options.compile_options
    plans = checkpoint.compile(compile_options)
    if inspector is not None:
        plans = inspector.expose(plans)
    limits = options.limits(plans, compile_options.page_tokens)
    return plans, lay_out(plans, backend, checkpoint.weights, limits, options.allow_per_slot)


def weight_cache() -> WeightCache:
    """The cache under treadle's home, with the limit of TREADLE_CACHE_LIMIT. Raises InvalidRequest for a bad limit."""
    limit = os.environ.get(LIMIT_VARIABLE)
    return WeightCache(home_directory() / "weights", None if limit is None else limit_from(limit))


def _place(
    checkpoint: Checkpoint, name: str, layout: Layout, backend: Backend, quantisation: Quantisation | None
) -> Place | None:
    """None where nothing is to be kept: no cache, no file, or a backend that packs nothing worth keeping."""
    cache = weight_cache()
    packing = layout.packing(backend)
    if cache.off or packing is None or not checkpoint.tensors.files:
        return None
    if quantisation is not None:
        packing += " of " + quantisation.signature(layout.dtypes.values())
    return Place(cache, name, _files(checkpoint), packing, backend.checksum)


def _files(checkpoint: Checkpoint) -> tuple[SourceFile, ...]:
    return tuple(SourceFile(file.path, file.stat) for file in checkpoint.tensors.files)


def certificates() -> CertificateStore:
    """The certificates under treadle's home."""
    return CertificateStore(home_directory() / "certificates")


def _check_memory(quote: MemoryQuote, available: int | None) -> None:
    if available is not None and quote.total_bytes > available:
        raise OutOfMemoryQuote(
            f"the model needs {quote.total_bytes} bytes (weights {quote.weights_bytes}, state {quote.state_bytes}, "
            f"registers and workspace {quote.registers_bytes + quote.workspace_bytes}); {available} are available; "
            "lower state_tokens, max_model_len or max_num_seqs"
        )


def _info(
    found: ResolvedModel,
    plans: ModelPlans,
    limits: StepLimits,
    backend: Backend,
    instead_of: str | None,
    files: tuple[SourceFile, ...],
    options: EngineOptions,
    weights_mapped: bool,
    load_s: float,
) -> EngineInfo:
    from treadle.plan.codec import encode

    data = encode(plans)
    described = backend.describe()
    plan_hash, numerics = data[-_HASH_BYTES:].hex(), str(described["numerics"])
    source = source_name(files)
    identity = Identity(plan_hash, backend.kernels(), backend.name, numerics, options.quantize, source)
    stages = plans.stages()
    return EngineInfo(
        model=found.name,
        path=str(found.path),
        backend=backend.name,
        isa=str(described["isa"]),
        threads=int(described["threads"]),
        numerics=numerics,
        plan_hash=plan_hash,
        instructions=max(len(stage.plan.instructions) for stage in stages),
        peak_registers=max(stage.peak_registers for stage in stages),
        plan_bytes=len(data),
        max_model_len=limits.max_seq_len,
        instead_of=instead_of,
        weights_mapped=weights_mapped,
        load_s=load_s,
        identity=identity,
        certified=bool(files) and certificates().find(identity, weight_cache().known_content(source)) is not None,
    )
