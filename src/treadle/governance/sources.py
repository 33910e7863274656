"""The checkout that governance is about: its root, its commit, and the state of the paths that evidence covers."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

import treadle
from treadle.errors import InvalidFile, InvalidRecord, InvalidRequest
from treadle.governance.git import commit_of, run_git

FOLDER: Final = "governance"
PHASES: Final = "phases.toml"
STAMP: Final = Path(".venv") / ".native"
"""What `make native` touches when the native core is up to date."""
LAST_LINE: Final = 300
"""Characters of a command's last line that are kept."""

NO_SUCH_PROGRAM: Final = 127
"""The exit code, as shells have it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that was run. `output`: its last line that is not empty."""

    exit_code: int
    seconds: float
    output: str


@dataclass(frozen=True, slots=True)
class Sources:
    """What a record is about: paths, and a hash of what they held."""

    paths: tuple[str, ...]
    tree: str


@dataclass(frozen=True, slots=True)
class Checkout:
    """A checkout of the sources, with its governance folder."""

    root: Path

    @classmethod
    def around(cls, folder: Path) -> Checkout:
        """The checkout that a folder lies in. Raises InvalidRequest where it is none."""
        found = next((parent for parent in (folder, *folder.parents) if (parent / FOLDER / PHASES).is_file()), None)
        if found is None:
            raise InvalidRequest(
                f"{folder} lies in no checkout with {FOLDER}/{PHASES}; run it where treadle's sources are"
            )
        return cls(found)

    @property
    def folder(self) -> Path:
        return self.root / FOLDER

    def commit(self) -> str:
        return commit_of(self.root, "HEAD")

    def tree(self, paths: Sequence[str]) -> str:
        """A hash of what the paths hold at HEAD. Raises InvalidRecord where one does not exist or has changes that
        are not committed: evidence would be about sources that nobody can see."""
        dirty = run_git(self.root, "status", "--porcelain", "--", *paths).splitlines()
        if dirty:
            raise InvalidRecord(f"{dirty[0][3:]}: has changes that are not committed; evidence is about a commit")
        names = [path.rstrip("/") for path in paths]
        try:
            found = run_git(self.root, "rev-parse", *(f"HEAD:{name}" for name in names)).split()
        except InvalidRequest:
            missing = next((name for name in names if not run_git(self.root, "ls-tree", "HEAD", name)), None)
            if missing is None:
                raise
            raise InvalidRequest(f"{missing}: no such path in the commit") from None
        return hashlib.sha256("\n".join(map(" ".join, zip(names, found, strict=True))).encode()).hexdigest()

    def sources(self, paths: Sequence[str]) -> Sources:
        """As they are now. Raises as `tree`."""
        return Sources(tuple(paths), self.tree(paths))

    def stamp(self, about: Sources, phase: str = "") -> dict[str, Any]:
        """What every record begins with; the ledger numbers and chains it. Raises InvalidRecord where the paths do not
        hold any more what they held."""
        if self.tree(about.paths) != about.tree:
            raise InvalidRecord(f"{', '.join(about.paths)} changed while it ran: nothing is recorded; run it again")
        return {"number": 0, "previous": "", "date": now(), "phase": phase, "commit": self.commit(), "tree": about.tree}

    def begin(self, paths: Sequence[str]) -> Sources:
        """Before something is run that a record will be about. Raises InvalidRecord for changes of the paths that are
        not committed, and where what runs here was not made of these sources."""
        about = self.sources(paths)
        package = self.root / "src" / "treadle"
        if not (package / "__init__.py").exists():
            return about
        running = Path(treadle.__file__).resolve().parent
        if running != package.resolve():
            raise InvalidRecord(f"{running} runs, and the record would be about {package}")
        core = find_spec("treadle._native")
        assert core is not None and core.origin is not None
        built = max(path.stat().st_mtime for path in (Path(core.origin), self.root / STAMP) if path.exists())
        for path in (self.root / "native").rglob("*.[ch]pp"):
            if path.stat().st_mtime > built and "tests" not in path.relative_to(self.root).parts:
                raise InvalidRecord(f"{path.relative_to(self.root)} is newer than the native core: run `make native`")
        return about

    def run(self, command: Sequence[str]) -> Ran:
        """Runs a command at the root, with this interpreter's programs first on the path."""
        bin_folder = Path(sys.executable).parent
        program = bin_folder / command[0]
        words = [str(program) if program.exists() else command[0], *command[1:]]
        began = time.monotonic()
        try:
            done = subprocess.run(words, cwd=self.root, capture_output=True, text=True, errors="replace", check=False)
        except FileNotFoundError:
            return Ran(NO_SUCH_PROGRAM, 0.0, f"{command[0]}: no such program")
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return Ran(done.returncode, round(time.monotonic() - began, 2), lines[-1][:LAST_LINE] if lines else "")


def read_toml(path: Path, kind: type[T]) -> T:
    """Raises InvalidFile: no such file, or not what `kind` says."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), kind)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidFile(f"{path}: {error}") from None


def machine() -> str:
    """Tells a machine from another in a record: processor, CPUs, last cache, and a hash of its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    features = found.get("flags") or found.get("Features") or ""
    parts = [
        f"{found.get('model name', platform.processor() or 'unknown processor')} ({platform.machine()})",
        f"{os.cpu_count()} CPUs",
        *([f"{found['cache size']} cache"] if "cache size" in found else []),
        *([f"features {hashlib.sha256(features.encode()).hexdigest()[:12]}"] if features else []),
    ]
    return ", ".join(parts)


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
