"""What an unknown model has in common with the known families, and a draft of its family file.

Every family tries to read the config, without refusing keys that it does not know, and to place the tensors. Which
places the most is the nearest; what it does not know is what the new family's author has to decide.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, get_type_hints

import msgspec

from treadle.errors import InvalidWeights, ModelNotFound, TreadleError, UnsupportedModel
from treadle.formats.gguf import GGUFFile
from treadle.formats.json_file import read_json
from treadle.formats.safetensors import INDEX_NAME, SINGLE_NAME, SafetensorsFile
from treadle.formats.tensors import TensorInfo, TensorSource
from treadle.models.checkpoint import CONFIG_NAME
from treadle.models.compile import CompileOptions, compile_model
from treadle.models.config import REQUIRED, Config, Keys, brief, read_field
from treadle.models.registry import GGUF_FAMILIES, HF_FAMILIES, Family
from treadle.models.rope import DEFAULT_THETA, Rope
from treadle.models.spec import LAYER
from treadle.models.weights import CheckpointWeights
from treadle.plan.ir import NO_WEIGHT, CompiledPlan, Container, GeneratorKind, WeightBinding
from treadle.plan.ops import OPS

HINTS: Final[Mapping[str, str]] = {
    r"experts|router|_exps": "moe",
    r"A_log|ssm_a|mamba|mixer": "mamba_mixer",
    r"kv_a_proj|attn_kv_a": "mla_attention",
    r"in_proj_qkvz|in_proj_ba|linear_attn": "gated_delta_net",
    r"\.conv\.|shortconv": "shortconv",
    r"pooler|score|classifier": "pool",
    r"[qkvo]_proj|qkv|attn": "multihead_attention",
    r"(gate|up|down)_proj|mlp|ffn|fc[12]": "swiglu",
    r"norm|ln_": "rmsnorm or layernorm",
    r"embed|wte|wpe": "embedding",
    r"lm_head": "lm_head",
}
"""What a tensor's name says of the op it is likely for; first match wins."""

PLAINEST: Final = "llama"

STAND_IN_FLOAT: Final = 1e-5
"""For numbers that a config lacks: enough to see which tensors fit."""


class Placed(msgspec.Struct, frozen=True):
    """Tensors that one slot of an op takes. `tensors`: with {layer} for the number; `layers`: how many have it."""

    op: str
    slot: str
    tensors: list[str]
    shape: list[int]
    layers: int


class Fit(msgspec.Struct, frozen=True):
    """How a known family fits the model."""

    family: str
    readable: bool
    """Whether the family could make plans of the config, apart from what `refused` and `unknown_keys` list."""
    refused: list[str]
    """Values of the config that the family lacks or does not support."""
    unknown_keys: dict[str, Any]
    """Keys that it does not read."""
    placed: list[Placed]
    missing: list[str]
    """Tensors that it wants, or wants in another shape."""
    left_over: dict[str, str]
    """Tensors without a place -> the op that their name suggests."""
    tensors_placed: int


class Onboarding(msgspec.Struct, frozen=True):
    """A model against everything that is known. `supported`: it runs as it is; else `reason` says why not."""

    model: str
    model_type: str
    supported: bool
    reason: str | None
    tensors: int
    fits: list[Fit]
    """Nearest first."""
    draft: str | None
    """Text of a family file to start from; None where the model is supported or nothing fits."""


class Subject(NamedTuple):
    """An unknown model: its config as keys, and its tensors where there are any."""

    name: str
    container: Container
    model_type: str
    heads: tuple[str, ...]
    values: Mapping[str, Any]
    tensors: TensorSource | None

    def infos(self) -> dict[str, TensorInfo]:
        return {} if self.tensors is None else {name: self.tensors.info(name) for name in self.tensors.names()}

    def keys(self) -> Keys:
        if self.container is Container.GGUF:
            return Keys.of_gguf(self.values, self.infos(), self.name)
        return Keys.of_json(self.values, self.name)


class Reading(NamedTuple):
    """A config as a family would read it, were what it refuses left out."""

    config: Config
    refused: list[str]
    unknown: dict[str, Any]


def examine(path: Path) -> Onboarding:
    """Reads a model folder, a config.json or a GGUF file. Raises ModelNotFound, InvalidFile, UnsupportedModel."""
    subject = _subject(path)
    try:
        reason = _refusal(subject)
        fits = [] if reason is None else sorted((_fit(subject, name) for name in _families()), key=_rank)
        draft = _draft(subject, fits[0]) if fits and fits[0].placed else None
        count = 0 if subject.tensors is None else len(subject.tensors.names())
        return Onboarding(subject.name, subject.model_type, reason is None, reason, count, fits, draft)
    finally:
        if subject.tensors is not None:
            subject.tensors.close()


def _subject(path: Path) -> Subject:
    if path.suffix == ".gguf" and path.is_file():
        file = GGUFFile.open(path)
        return Subject(path.name, Container.GGUF, file.architecture, (), file.metadata, file)
    folder = path if path.is_dir() else path.parent
    config = path / CONFIG_NAME if path.is_dir() else path
    if not config.is_file():
        raise ModelNotFound(f"{config}: no such file; give a model folder, a config.json or a .gguf file")
    values = read_json(config)
    found = any((folder / name).is_file() for name in (SINGLE_NAME, INDEX_NAME))
    heads = values.get("architectures") or []
    open_values = {key: value for key, value in values.items() if key != "architectures"}
    if not isinstance(values.get("model_type"), str) or not isinstance(heads, list):
        raise UnsupportedModel(f"{config}: needs a model_type, and a list of architectures if any")
    return Subject(
        folder.name if path.is_dir() else path.name,
        Container.SAFETENSORS,
        values["model_type"],
        tuple(map(str, heads)),
        open_values,
        SafetensorsFile.open(folder) if found else None,
    )


def _refusal(subject: Subject) -> str | None:
    """Why the model does not run as it is; None: it does."""
    table = GGUF_FAMILIES if subject.container is Container.GGUF else HF_FAMILIES
    if subject.model_type not in table:
        return f"{subject.model_type!r} is no known family"
    family = _family(table[subject.model_type])
    if unknown_heads := [head for head in subject.heads if head not in family.config.ARCHITECTURES]:
        return f"architectures: {unknown_heads[0]} is not among {', '.join(family.config.ARCHITECTURES)}"
    try:
        config = family.config.read(subject.keys())
        architecture = family.architecture(config)
        plans = compile_model(architecture, config.sha256(), CompileOptions())
        if subject.tensors is not None:
            weights = CheckpointWeights(subject.tensors, subject.name)
            for compiled in plans.stages():
                weights.check(compiled.weight_bindings, architecture.unused)
    except TreadleError as error:
        return str(error)
    return None


def _families() -> list[str]:
    return sorted(set(HF_FAMILIES.values()) | set(GGUF_FAMILIES.values()))


def _family(name: str) -> Family:
    found = importlib.import_module(f"treadle.models.families.{name}").FAMILY
    assert isinstance(found, Family)
    return found


def _rank(fit: Fit) -> tuple[bool, int, int, bool, str]:
    """Nearest first: it could make plans, places the most tensors, misses the least, refuses the least; among equals
    the plainest layout, which many families only add scales and windows to."""
    refused = len(fit.unknown_keys) + len(fit.refused)
    return not fit.readable, len(fit.missing) - fit.tensors_placed, refused, fit.family != PLAINEST, fit.family


def _fit(subject: Subject, name: str) -> Fit:
    family = _family(name)
    reading = None
    try:
        reading = _read(family.config, subject.keys())
        plans = compile_model(family.architecture(reading.config), reading.config.sha256(), CompileOptions())
    except TreadleError as error:
        refused = [*(reading.refused if reading else ()), str(error)]
        return Fit(name, False, refused, reading.unknown if reading else {}, [], [], {}, 0)
    compiled = plans.stages()[0]
    missing = _missing(subject, compiled.weight_bindings)
    wanted = {tensor for binding in compiled.weight_bindings for tensor in _tensors(binding, subject.container)}
    names = set() if subject.tensors is None else set(subject.tensors.names())
    left_over = {pattern: _hint(pattern) for pattern in _patterns(names - wanted)}
    placed = _placed(compiled, subject.container)
    return Fit(name, True, reading.refused, reading.unknown, placed, missing, left_over, len(names & wanted))


def _read(kind: type[Config], keys: Keys) -> Reading:
    """Reads field after field; one that is refused takes its default. Raises UnsupportedModel where it has none."""
    values: dict[str, Any] = {}
    refused: list[str] = []
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        try:
            values[field.name] = read_field(keys, field, hints[field.name], values)
        except UnsupportedModel as error:
            values[field.name] = _stand_in(field, hints[field.name], values, error)
            refused.append(str(error))
    config = kind(**values)
    try:
        config.check(keys)
    except UnsupportedModel as error:
        refused.append(str(error))
    return Reading(config, refused, keys.rest(*kind.harmless(keys.container)))


def _stand_in(field: dataclasses.Field[Any], hint: Any, values: Mapping[str, Any], error: UnsupportedModel) -> Any:
    """A value that lets the reading go on. Sizes cannot be guessed."""
    default = field.metadata["declared"].default
    if default is not REQUIRED:
        return default(values) if callable(default) else default
    if hint is float:
        return STAND_IN_FLOAT
    if hint is Rope:
        return Rope(rotary_dim=values["head_dim"], kind=GeneratorKind.ROPE_DEFAULT, args=(DEFAULT_THETA,))
    raise error


def _missing(subject: Subject, bindings: Iterable[WeightBinding]) -> list[str]:
    if subject.tensors is None:
        return []
    weights = CheckpointWeights(subject.tensors, subject.name)
    found: dict[str, None] = {}
    for binding in bindings:
        try:
            weights.dtype(binding)
        except (InvalidWeights, UnsupportedModel) as error:
            text = str(error).partition(": ")[2]
            found.setdefault(re.sub(r"[\w.]+", lambda name: _pattern(name[0]), text))
    return list(found)


def _placed(compiled: CompiledPlan, container: Container) -> list[Placed]:
    """Every slot that a tensor fills; layers that are alike make one row."""
    rows: dict[tuple[str, str, tuple[str, ...], tuple[int, ...]], int] = {}
    for instruction in compiled.plan.instructions:
        spec = OPS[instruction.opcode]
        for slot, index in zip(spec.weights, instruction.weights, strict=True):
            if index == NO_WEIGHT:
                continue
            binding = compiled.weight_bindings[index]
            names = tuple(_pattern(tensor) for tensor in _tensors(binding, container))
            if names:
                key = (spec.name, slot.name, names, binding.shape)
                rows[key] = rows.get(key, 0) + 1
    return [Placed(op, slot, list(names), list(shape), n) for (op, slot, names, shape), n in rows.items()]


def _tensors(binding: WeightBinding, container: Container) -> tuple[str, ...]:
    return next((source.tensors for source in binding.sources if source.container == container), ())


def _pattern(name: str) -> str:
    """The first number between dots is the layer's, others become {i}."""
    numbered = re.sub(r"(?<=\.)\d+(?=\.)", LAYER, name, count=1)
    return re.sub(r"(?<=\.)\d+(?=\.)", "{i}", numbered)


def _patterns(names: Iterable[str]) -> list[str]:
    return sorted({_pattern(name) for name in names})


def _hint(pattern: str) -> str:
    return next((op for expression, op in HINTS.items() if re.search(expression, pattern)), "no known op")


def _draft(subject: Subject, fit: Fit) -> str:
    """A family file that starts from the nearest family and lists what is to be decided."""
    base = _family(fit.family)
    config = base.config.__name__
    name = "".join(word.capitalize() for word in re.split(r"\W|_", subject.model_type) if word) or "New"
    name = name if name[0].isalpha() else f"Model{name}"
    heads = "".join(f"{json.dumps(head)}, " for head in subject.heads) or '"...", '
    gguf = json.dumps(subject.model_type) if subject.container is Container.GGUF else "None"
    decide = [text.partition(": ")[2] for text in fit.refused]
    decide += [f"{key} = {brief(value)}" for key, value in fit.unknown_keys.items()]
    tensors = [f"no place yet: {pattern} ({hint}?)" for pattern, hint in fit.left_over.items()]
    tensors += [f"not found: {text}" for text in fit.missing]
    return DRAFT.format(
        name=name,
        model_type=json.dumps(subject.model_type),
        module=inspect.getmodule(base.architecture).__name__,  # type: ignore[union-attr]
        nearest=fit.family,
        base=config,
        heads=heads.rstrip(),
        gguf=gguf,
        keys=_comments(
            "Keys of the config that are refused until they are declared here, or listed in IGNORED", decide
        ),
        tensors=_comments("Tensors", tensors),
    )


def _comments(title: str, lines: list[str]) -> str:
    return textwrap.indent("\n".join((f"{title}:", *(f"  {line}" for line in lines))), "    # ") if lines else ""


DRAFT: Final = '''\
"""{name}: a draft. The nearest known family is {nearest}.

Name the source paper and the reference implementation here. Then decide what is listed below, run
`treadle run MODEL --family-file THIS_FILE`, and compare with the reference implementation.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from {module} import {base}
from {module} import architecture as {nearest}_architecture
from treadle.models.registry import Family
from treadle.models.spec import Architecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class {name}Config({base}):
    MODEL_TYPE: ClassVar[str] = {model_type}
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ({heads})
    GGUF_ARCHITECTURE: ClassVar[str | None] = {gguf}
{keys}

def architecture(config: {name}Config) -> Architecture:
{tensors}
    return {nearest}_architecture(config)


FAMILY = Family({name}Config, architecture)
'''
