"""The strict config reader: a family declares its fields once, and both doors give the same typed config.

config.json and GGUF metadata are read through the same declarations. A key that is neither declared nor known not to
change the maths is refused by name, and so is a value outside what a field supports.
"""

from __future__ import annotations

import dataclasses
import hashlib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.errors import UnsupportedModel
from treadle.formats.tensors import TensorInfo
from treadle.models.known_keys import GGUF_IGNORED, GGUF_ONLY, HF_IGNORED, HF_ONLY
from treadle.models.sentence import Sentence, read_sentence
from treadle.plan.ir import Container

REQUIRED: Final = object()
BOUNDS: Final[Mapping[type, tuple[float, float]]] = {int: (1, 1 << 24), float: (1e-30, 1e30)}
"""Default bounds of numbers: far above any model, far below what could exhaust the compiler."""


class Keys:
    """The keys of one config; remembers which were read, so that the rest can be refused by name."""

    def __init__(
        self,
        container: Container,
        values: Mapping[str, Any],
        where: str,
        tensors: Mapping[str, TensorInfo],
        directory: Path | None = None,
        values_of: Callable[[str], NDArray[np.float32]] | None = None,
    ) -> None:
        self.container = container
        self.where = where
        self.tensors = tensors
        self.values_of = values_of
        """The values of a small tensor; None where there are only shapes."""
        self.called: dict[str, str] = {}
        """Declared fields' names and the keys that they were read by."""
        self._directory = directory
        self._values = values
        self._read: set[str] = set()

    @classmethod
    def of_json(cls, config: Mapping[str, Any], where: str, directory: Path | None = None) -> Self:
        """`directory`: where other files of the checkpoint lie."""
        return cls(Container.SAFETENSORS, config, where, {}, directory)

    @classmethod
    def of_gguf(
        cls,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        where: str,
        values_of: Callable[[str], NDArray[np.float32]] | None = None,
    ) -> Self:
        """Only what stands behind the architecture's prefix; other namespaces do not change the maths."""
        kind = metadata.get("general.type", "model")
        if kind != "model":
            raise UnsupportedModel(f"{where}: general.type: {kind!r}; only 'model' is supported")
        prefix = f"{metadata['general.architecture']}."
        values = {key[len(prefix) :]: value for key, value in metadata.items() if key.startswith(prefix)}
        return cls(Container.GGUF, values, where, tensors, values_of=values_of)

    @cached_property
    def sentence(self) -> Sentence | None:
        """What modules.json says, where there is one. Raises InvalidFile, UnsupportedModel."""
        return None if self._directory is None else read_sentence(self._directory)

    def take(self, key: str) -> Any:
        """The value, or None where the key is absent or null. It counts as read."""
        self._read.add(key)
        return self._peek(key)

    def _peek(self, key: str) -> Any:
        value = self._values.get(key)
        return value.tolist() if isinstance(value, np.ndarray) else value

    def number(self, key: str, default: float | None = None, bounds: tuple[float, float] | None = None) -> float:
        """A number as f32. Raises UnsupportedModel where it is missing without a default."""
        value = self.take(key)
        if value is None:
            if default is None:
                self.refuse(key, None, "a number")
            return single(default)
        return float(convert(self, key, value, float, bounds))

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def refuse(self, key: str, found: object, expected: str) -> typing.NoReturn:
        """`key`: or the name of the field that was read by it."""
        called = self.called.get(key, key)
        raise UnsupportedModel(f"{self.where}: {called}: found {brief(found)}, supported: {expected}")

    def rest(self, ignored: Collection[str], only: Mapping[str, object]) -> dict[str, Any]:
        """Keys that nobody read and that may change the maths. `only`: those that may have this one value, or null."""
        values = {key: self._peek(key) for key in sorted(self._values.keys() - self._read - set(ignored))}
        return {key: value for key, value in values.items() if key not in only or not _is_only(value, only[key])}

    def refuse_rest(self, ignored: Collection[str], only: Mapping[str, object]) -> None:
        """Raises UnsupportedModel for the first key that nobody read."""
        for key, value in self.rest(ignored, only).items():
            if key in only:
                self.refuse(key, value, repr(only[key]))
            raise UnsupportedModel(
                f"{self.where}: key {key!r} (value {brief(value)}) is not known for this architecture"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Declared:
    """How a field is read. `default`: a value, or a function of the fields before it, for absent or null keys."""

    default: object
    hf: str | None
    gguf: str | None
    gguf_tensor: str | None
    bounds: tuple[float, float] | None
    choices: Mapping[str, Enum] | None
    reader: Callable[[Keys, Mapping[str, Any]], Any] | None


def declare(
    default: object = REQUIRED,
    *,
    hf: str | None = "",
    gguf: str | None = None,
    gguf_tensor: str | None = None,
    bounds: tuple[float, float] | None = None,
    choices: Mapping[str, Enum] | None = None,
    reader: Callable[[Keys, Mapping[str, Any]], Any] | None = None,
) -> Any:
    """Declare a config field.

    `hf`: key in config.json, the field's own name unless given, None where it has none. `gguf`: metadata key behind
    the architecture's prefix. `gguf_tensor`: in a GGUF file the value is whether this tensor exists ("!name": does
    not). `bounds`: of numbers. `choices`: the supported strings and what they mean. `reader`: reads it all itself.
    """
    declared = Declared(default, hf, gguf, gguf_tensor, bounds, choices, reader)
    return dataclasses.field(metadata={"declared": declared})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every family's config. Equal models have equal hashes, whichever door they came through."""

    MODEL_TYPE: ClassVar[str]
    ARCHITECTURES: ClassVar[tuple[str, ...]]
    """The classes of `architectures` in config.json whose heads this family builds."""
    GGUF_ARCHITECTURE: ClassVar[str | None] = None
    """general.architecture of GGUF files of this family; None: llama.cpp defines none."""
    PLANNED_AS: ClassVar[str | None] = None
    """What plans call it: another family that its GGUF files cannot be told from. None: MODEL_TYPE."""
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    """More keys of config.json that do not change this family's maths."""
    ONLY: ClassVar[Mapping[str, object]] = {}
    """More keys of config.json that may be there with this one value, or null."""
    GGUF_ONLY: ClassVar[Mapping[str, object]] = {}
    """More metadata keys that may be there with this one value."""

    @classmethod
    def read(cls, keys: Keys) -> Self:
        """Raises UnsupportedModel naming the key, what was found and what is supported."""
        if keys.container is Container.SAFETENSORS:
            _check_head(keys, cls.ARCHITECTURES)
        values: dict[str, Any] = {}
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            values[field.name] = read_field(keys, field, hints[field.name], values)
        keys.refuse_rest(*cls.harmless(keys.container))
        config = cls(**values)
        config.check(keys)
        return config

    @classmethod
    def harmless(cls, container: Container) -> tuple[frozenset[str], Mapping[str, object]]:
        """Keys that need not be read: those that change nothing, and those that may have one value, or null."""
        if container is Container.SAFETENSORS:
            return HF_IGNORED | cls.IGNORED, {**HF_ONLY, **cls.ONLY}
        return GGUF_IGNORED, {**GGUF_ONLY, **cls.GGUF_ONLY}

    @classmethod
    def planned_as(cls) -> str:
        return cls.PLANNED_AS or cls.MODEL_TYPE

    def check(self, keys: Keys) -> None:
        """Relations between fields. Raises UnsupportedModel."""

    def sha256(self) -> str:
        """Of the canonical form: what plans call it, then fields by name, floats as the f32 that plans hold."""
        canonical = {"model_type": self.planned_as(), **_canonical(self)}
        return hashlib.sha256(msgspec.json.encode(canonical, order="deterministic")).hexdigest()


def _is_only(value: object, only: object) -> bool:
    return value is None or (type(value) is type(only) and value == only)


def _check_head(keys: Keys, known: tuple[str, ...]) -> None:
    heads = keys.take("architectures") or []
    for head in heads if isinstance(heads, list) else [heads]:
        if head not in known:
            keys.refuse("architectures", head, ", ".join(known))


def read_field(keys: Keys, field: dataclasses.Field[Any], hint: Any, values: Mapping[str, Any]) -> Any:
    """One declared field; `values`: the fields before it. Raises UnsupportedModel."""
    declared: Declared = field.metadata["declared"]
    if declared.reader is not None:
        return declared.reader(keys, values)
    if keys.container is Container.GGUF and declared.gguf_tensor is not None:
        wanted = not declared.gguf_tensor.startswith("!")
        return (declared.gguf_tensor.lstrip("!") in keys.tensors) == wanted
    name = declared.gguf if keys.container is Container.GGUF else (field.name if declared.hf == "" else declared.hf)
    if name is not None:
        keys.called[field.name] = name
    found = None if name is None else keys.take(name)
    if found is not None:
        assert name is not None
        return convert(keys, name, found, hint, declared.bounds, declared.choices)
    if name is not None and name in keys and _optional(hint) and keys.container is Container.SAFETENSORS:
        return None
    if declared.default is REQUIRED:
        raise UnsupportedModel(f"{keys.where}: {name or field.name}: missing, and it has no default")
    default = declared.default(values) if callable(declared.default) else declared.default
    return single(default) if isinstance(default, float) else default


def _optional(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) and type(None) in hint.__args__


def convert(
    keys: Keys,
    key: str,
    value: Any,
    hint: Any,
    bounds: tuple[float, float] | None = None,
    choices: Mapping[str, Enum] | None = None,
) -> Any:
    """The value as the hinted type, exactly: no number from a string, no int from a bool or a fraction."""
    if choices is not None:
        if not isinstance(value, str) or value not in choices:
            keys.refuse(key, value, ", ".join(choices))
        return choices[value]
    kind = next(arg for arg in hint.__args__ if arg is not type(None)) if _optional(hint) else hint
    accepted = (int, float) if kind is float else (kind,)
    if type(value) not in accepted:
        keys.refuse(key, value, kind.__name__)
    if kind in BOUNDS:
        low, high = bounds or BOUNDS[kind]
        if not low <= value <= high:
            keys.refuse(key, value, f"{low:g} to {high:g}")
    return single(value) if kind is float else value


def single(value: float) -> float:
    """Rounded to f32, as GGUF stores it and plans hold it: both doors then agree."""
    return float(np.float32(value))


def brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _canonical(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _canonical(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, tuple):
        return [_canonical(item) for item in value]
    return single(value) if isinstance(value, float) else value
