"""What putting a model together gives: an engine that runs, or the description of one that was not loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from treadle.errors import InvalidRequest
from treadle.inference.backends.base import Numerics
from treadle.inference.certificates import Identity
from treadle.inference.core import EngineCore
from treadle.inference.cost import InstructionCost, StepCost, instruction_costs, kept_dtype, step_cost
from treadle.inference.encoder import Encoder
from treadle.inference.executor import Executor, Layout, MemoryQuote
from treadle.inference.model_text import ModelText
from treadle.inference.weight_cache import Place, SourceFile
from treadle.plan.ir import ModelPlans, Stage


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

    @cached_property
    def per_slot(self) -> dict[str, int]:
        """Name of an op that the backend runs slot by slot -> how many of the last program's instructions it is."""
        instructions = self.layout.programs[-1].plan.instructions
        return dict(Counter(instructions[i].opcode.name.lower() for i in sorted(self.layout.per_slot[-1])))

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
    text: ModelText | None
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

    @cached_property
    def kv_dtype(self) -> str | None:
        """The type that keys and values are kept in; None where none are."""
        return kept_dtype(self.layout.programs[-1])

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
