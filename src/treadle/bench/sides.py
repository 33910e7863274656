"""The two sides of a comparison: a commit's sources, checked out and built beside the repository, and its worker."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from treadle.bench import pair_worker
from treadle.bench.points import Point
from treadle.errors import InvalidRequest, TreadleError
from treadle.governance.git import commit_of, extract

ANSWER_SECONDS = 600
BUILDS = Path("build") / "compare"


def built(root: Path, commit: str, say: Callable[[str], None]) -> Path:
    """The `src` folder of a commit with its native core built into it, under build/compare; made once.

    Raises InvalidRequest: no such commit, or it does not build.
    """
    full = commit_of(root, commit)
    folder = root / BUILDS / full[:12]
    if (folder / "done").exists():
        return folder / "src"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    say(f"building {commit} ({full[:12]})")
    try:
        extract(root, full, folder)
        _build(folder)
        (folder / "done").touch()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder / "src"


def _build(folder: Path) -> None:
    out = folder / "native-build"
    configure = ["cmake", "-S", str(folder), "-B", str(out), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    programs = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    for command in (configure, ["cmake", "--build", str(out), "--target", "_native"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=programs)
        except FileNotFoundError:
            raise InvalidRequest("building a commit needs cmake: `make native` installs it") from None
        if done.returncode:
            raise InvalidRequest(f"{folder.name} does not build: {(done.stdout + done.stderr).strip()[-400:]}")
    (module,) = out.glob("_native*.so")
    shutil.copy2(module, folder / "src" / "treadle" / module.name)


class Side:
    """A commit's worker. `facts`: what it said of the model it loaded. Raises TreadleError where it fails."""

    def __init__(
        self, name: str, sources: Path, model: str, threads: int, numerics: str, room: Mapping[str, int]
    ) -> None:
        self.name = name
        sizes = [str(room[key]) for key in ("max_batch", "max_length", "tokens")]
        worker = [sys.executable, pair_worker.__file__, str(sources), model, str(threads), numerics, *sizes]
        self._process = subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise

    def measure(self, point: Point) -> list[float]:
        """Seconds of each step."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asdict(point)) + "\n")
            self._process.stdin.flush()
        steps: list[float] = self._answer()["steps"]
        return steps

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        overdue = threading.Timer(ANSWER_SECONDS, self._process.kill)
        overdue.start()
        line = self._process.stdout.readline()
        overdue.cancel()
        if not line:
            raise TreadleError(f"{self.name}: its process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TreadleError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
