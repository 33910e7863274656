"""Which family a checkpoint belongs to; a family's file is imported when it is first asked for.

A user's own family file, anywhere on disk, stands in for the tables: `family_of_file` reads it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from treadle.errors import InvalidRequest, UnsupportedModel
from treadle.models.config import Config
from treadle.models.spec import Architecture

HF_FAMILIES: Final[Mapping[str, str]] = {
    "arcee": "arcee",
    "bert": "bert",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "ernie4_5": "ernie4_5",
    "exaone4": "exaone4",
    "falcon_mamba": "falcon_mamba",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_text",
    "glm": "glm",
    "glm4": "glm4",
    "glm4_moe": "glm4_moe",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "gpt_oss": "gpt_oss",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "granitemoehybrid": "granitemoehybrid",
    "helium": "helium",
    "jamba": "jamba",
    "lfm2": "lfm2",
    "lfm2_moe": "lfm2_moe",
    "llama": "llama",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "modernbert": "modernbert",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
    "phi": "phi",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "qwen3_next": "qwen3_next",
    "roberta": "roberta",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
    "xlm-roberta": "roberta",
}
"""model_type of config.json -> module in families/."""
GGUF_FAMILIES: Final[Mapping[str, str]] = {
    "arcee": "arcee",
    "bert": "bert",
    "deepseek2": "deepseek_v2",
    "ernie4_5": "ernie4_5",
    "exaone4": "exaone4",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "glm4": "glm4",
    "glm4moe": "glm4_moe",
    "gpt-oss": "gpt_oss",
    "gpt2": "gpt2",
    "gptneox": "gpt_neox",
    "granite": "granite",
    "granitehybrid": "granitemoehybrid",
    "granitemoe": "granitemoe",
    "jamba": "jamba",
    "lfm2": "lfm2",
    "lfm2moe": "lfm2_moe",
    "llama": "llama",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "modern-bert": "modernbert",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
    "phi2": "phi",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
}
"""general.architecture of GGUF -> module in families/."""
GGUF_VARIANTS: Final[Mapping[str, tuple[str, Callable[[object], bool], str]]] = {
    "deepseek2": ("expert_gating_func", lambda value: value == 2, "deepseek_v3"),
    "llama": ("expert_count", bool, "mixtral"),
}
"""Architectures that are another family where a key behind their prefix says so: (key, whether it does, family)."""


@dataclass(frozen=True, slots=True)
class Family:
    """A family file's one public value: its config, and the function from config to architecture."""

    config: type[Config]
    architecture: Callable[[Any], Architecture]


def family_of_json(model_type: object, where: str, own: Family | None = None) -> Family:
    """The family of a config.json; `own`: one of the user's. Raises UnsupportedModel naming the type."""
    field = f"{where}: model_type"
    return (
        _family(HF_FAMILIES, model_type, field) if own is None else _own(own, own.config.MODEL_TYPE, model_type, field)
    )


def family_of_gguf(
    architecture: object, where: str, own: Family | None = None, metadata: Mapping[str, object] | None = None
) -> Family:
    """The family of a GGUF file; `own`: one of the user's. Raises UnsupportedModel as `family_of_json`."""
    field = f"{where}: general.architecture"
    if own is not None:
        return _own(own, own.config.GGUF_ARCHITECTURE, architecture, field)
    key, says_so, variant = GGUF_VARIANTS.get(str(architecture), ("", bool, ""))
    if variant and says_so((metadata or {}).get(f"{architecture}.{key}")):
        return _family({**GGUF_FAMILIES, str(architecture): variant}, architecture, field)
    return _family(GGUF_FAMILIES, architecture, field)


def family_of_file(path: Path) -> Family:
    """Runs a user's family file, which is Python code, and returns its FAMILY.

    Raises InvalidRequest: it cannot be read or run, or defines no FAMILY.
    """
    spec = importlib.util.spec_from_file_location(f"treadle_family_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidRequest(f"{path}: a family file is a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:
        line = next(
            (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(path)), None
        )
        line = error.lineno if isinstance(error, SyntaxError) else line
        raise InvalidRequest(f"{path}: line {line}: {type(error).__name__}: {error}") from error
    family = getattr(module, "FAMILY", None)
    if not isinstance(family, Family):
        raise InvalidRequest(
            f"{path}: defines no FAMILY; a family file ends with FAMILY = Family(Config, architecture)"
        )
    return family


def _own(family: Family, known: str | None, name: object, field: str) -> Family:
    if known is None or name != known:
        raise UnsupportedModel(f"{field}: {name!r}; the family file is for {known!r}")
    return family


def _family(table: Mapping[str, str], name: object, field: str) -> Family:
    if not isinstance(name, str) or name not in table:
        raise UnsupportedModel(
            f"{field}: {name!r} is not supported; known: {', '.join(sorted(table))}. "
            "`treadle onboard` drafts a family file"
        )
    family = importlib.import_module(f"treadle.models.families.{table[name]}").FAMILY
    assert isinstance(family, Family)
    return family
