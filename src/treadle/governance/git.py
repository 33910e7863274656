"""Git, as the tools for maintainers use it: on the checkout around a folder. Everything raises InvalidRequest."""

from __future__ import annotations

import subprocess
from pathlib import Path

from treadle.errors import InvalidRequest


def run_git(folder: Path, *arguments: str) -> str:
    """What git prints."""
    return _run(folder, *arguments).decode(errors="replace")


def root_of(folder: Path) -> Path:
    """The checkout's root."""
    return Path(run_git(folder, "rev-parse", "--show-toplevel").strip())


def commit_of(folder: Path, name: str) -> str:
    """The hash of the commit that a name stands for."""
    try:
        return run_git(folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    except InvalidRequest:
        raise InvalidRequest(f"{name}: no such commit in {folder}") from None


def extract(root: Path, commit: str, folder: Path) -> None:
    """Writes a commit's files into a folder that is there; the checkout is not touched."""
    subprocess.run(["tar", "-x", "-C", str(folder)], input=_run(root, "archive", commit), check=True)


def _run(folder: Path, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise InvalidRequest("git is not installed") from None
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        raise InvalidRequest(f"git {arguments[0]}: {told[-1] if told else f'ended with {done.returncode}'}")
    return done.stdout
