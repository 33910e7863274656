"""Where everything is put together: a model's name becomes a checkpoint, plans, a bound backend and an engine."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.errors import (
    BackendUnavailable,
    InvalidInstructionBinding,
    OutOfMemoryQuote,
    TreadleError,
    UnsupportedOpcode,
)
from treadle.formats.hub import ResolvedModel, resolve
from treadle.formats.tensors import dequantise
from treadle.inference.backends import BACKENDS, BackendOptions, create
from treadle.inference.backends.base import Backend
from treadle.inference.certificates import Identity
from treadle.inference.core import EngineCore
from treadle.inference.encoder import Encoder
from treadle.inference.executor import Executor, Layout, MemoryQuote, Progress, lay_out
from treadle.inference.home import certificates, weight_cache
from treadle.inference.inspection import Inspector
from treadle.inference.loaded import Description, Engine, EngineInfo
from treadle.inference.memory import available_bytes
from treadle.inference.model_text import ModelText
from treadle.inference.options import EngineOptions, Sizing
from treadle.inference.state import StatePool
from treadle.inference.weight_cache import Place, SourceFile, source_name
from treadle.models.checkpoint import Checkpoint, is_synthetic, open_checkpoint, open_synthetic
from treadle.models.quantisation import Quantisation
from treadle.plan.ir import DType, ModelPlans
from treadle.plan.views import StepLimits, TensorView

__all__ = ["describe", "load", "quantisation_to"]

REFUSALS: Final = (UnsupportedOpcode, InvalidInstructionBinding, BackendUnavailable)
"""How a backend says, before anything runs, that it cannot run a plan."""
_HASH_BYTES: Final = 32


def load(
    model: str | Path,
    options: EngineOptions,
    progress: Progress | None = None,
    inspector: Inspector | None = None,
    sizing: Sizing | None = None,
) -> Engine:
    """Opens, compiles, quotes, binds: the model is ready to take requests. `inspector`: gets all values. `sizing`: is
    asked, once the model is known, for sizes that stand in for those of the options.

    Raises ModelNotFound, NotInCache, InvalidFile, UnsupportedModel, InvalidWeights, UnsupportedOpcode,
    BackendUnavailable, OutOfMemoryQuote (before anything is allocated).
    """
    began = time.monotonic()
    quantisation = _quantisation(options)
    found, checkpoint = _opened(model, quantisation, options)
    try:
        plans, layout, backend, instead = _laid_out(checkpoint, options, inspector, sizing)
        quote = layout.quote()
        _check_memory(quote, available_bytes())
        text_tools = ModelText.of(checkpoint)
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
    found, checkpoint = _opened(model, _quantisation(options), options)
    try:
        plans, layout, backend, instead = _laid_out(checkpoint, options)
    finally:
        checkpoint.close()
    seconds = time.monotonic() - began
    info = _info(found, plans, layout.limits, backend, instead, _files(checkpoint), options, False, seconds)
    return Description(plans, info, layout)


def _opened(
    model: str | Path, quantisation: Quantisation | None, options: EngineOptions
) -> tuple[ResolvedModel, Checkpoint]:
    if is_synthetic(model):
        return ResolvedModel(str(model), Path(model), "gguf"), open_synthetic(str(model), quantisation)
    found = resolve(model)
    return found, open_checkpoint(found.path, quantisation, options.family_file)


def _backend(options: EngineOptions, name: str) -> Backend:
    """`name`: the backend asked for, or its fallback, for which no fusion is left out."""
    fusions = frozenset(options.disable_fusion) if name == options.backend else frozenset()
    return create(name, BackendOptions(options.threads, options.numerics, _decode, fusions))


def _laid_out(
    checkpoint: Checkpoint, options: EngineOptions, inspector: Inspector | None = None, sizing: Sizing | None = None
) -> tuple[ModelPlans, Layout, Backend, str | None]:
    """The plans, sized for the backend asked for; or for the fallback, whole, with why the other one refused.

    Raises what the backend refused with, naming the backends that would run the plans, where no fallback is given.
    """
    try:
        backend = _backend(options, options.backend)
        return *_compiled(checkpoint, backend, options, inspector, sizing), backend, None
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
    return *_compiled(checkpoint, backend, options, inspector, sizing), backend, reason


def _runs(checkpoint: Checkpoint, options: EngineOptions, name: str) -> bool:
    """Whether a backend would take the plans."""
    try:
        _compiled(checkpoint, _backend(options, name), msgspec.structs.replace(options, allow_per_slot=True))
    except TreadleError:
        return False
    return True


def _quantisation(options: EngineOptions) -> Quantisation | None:
    return None if options.quantize is None else quantisation_to(options.quantize, options.threads)


def quantisation_to(name: str, threads: int | None) -> Quantisation:
    """Encodes matrices to the type `name` on `threads` threads; None: as many as the process may use."""
    from treadle.inference.backends.cpu_count import default_threads
    from treadle.inference.backends.cpu_encode import RowEncoder  # the native core, which not every backend needs

    return Quantisation(DType[name.upper()], RowEncoder(threads or default_threads()))


def _decode(view: TensorView) -> NDArray[np.float32]:
    return dequantise(np.ascontiguousarray(view.data).reshape(-1), view.dtype.name.lower(), view.shape)


def _compiled(
    checkpoint: Checkpoint,
    backend: Backend,
    options: EngineOptions,
    inspector: Inspector | None = None,
    sizing: Sizing | None = None,
) -> tuple[ModelPlans, Layout]:
    compile_options = options.compile_options
    plans = checkpoint.compile(compile_options)
    if inspector is not None:
        plans = inspector.expose(plans)
    if sizing is not None:
        sizes = sizing(plans.facts.max_positions, plans.encode is not None)
        options = msgspec.structs.replace(options, **sizes)
    limits = options.limits(plans, compile_options.page_tokens)
    return plans, lay_out(plans, backend, checkpoint.weights, limits, options.allow_per_slot)


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
