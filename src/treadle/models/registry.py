"""Which family a checkpoint belongs to; a family's file is imported when it is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from treadle.errors import UnsupportedModel
from treadle.models.config import Config
from treadle.models.spec import Architecture

HF_FAMILIES: Final[Mapping[str, str]] = {"llama": "llama", "mistral": "mistral"}
"""model_type of config.json -> module in families/."""
GGUF_FAMILIES: Final[Mapping[str, str]] = {"llama": "llama"}
"""general.architecture of GGUF -> module in families/."""

GGUF_ARCHITECTURES: Final[Mapping[str, str]] = {"llama": "llama", "mistral": "llama"}
"""MODEL_TYPE of a family's config -> the architecture that GGUF files of it name."""


@dataclass(frozen=True, slots=True)
class Family:
    """A family file's one public value: its config, and the function from config to architecture."""

    config: type[Config]
    architecture: Callable[[Any], Architecture]


def family_of_json(model_type: object, where: str) -> Family:
    """The family of a config.json. Raises UnsupportedModel naming the type and those that are known."""
    return _family(HF_FAMILIES, model_type, f"{where}: model_type")


def family_of_gguf(architecture: object, where: str) -> Family:
    """The family of a GGUF file. Raises UnsupportedModel naming the architecture and those that are known."""
    return _family(GGUF_FAMILIES, architecture, f"{where}: general.architecture")


def _family(table: Mapping[str, str], name: object, field: str) -> Family:
    if not isinstance(name, str) or name not in table:
        raise UnsupportedModel(f"{field}: {name!r} is not supported; known: {', '.join(sorted(table))}")
    family = importlib.import_module(f"treadle.models.families.{table[name]}").FAMILY
    assert isinstance(family, Family)
    return family
