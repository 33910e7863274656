"""The two sides of a comparison: a commit's sources, checked out and built beside the repository, and its worker."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from treadle.bench import pair_worker
from treadle.bench.line_worker import LineWorker
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
        sizes = [room[key] for key in ("max_batch", "max_length", "tokens")]
        command = [sys.executable, pair_worker.__file__, sources, model, threads, numerics, *sizes]
        self._worker = LineWorker(command, lambda why: TreadleError(f"{name}: {why}"))
        try:
            self.facts = self._worker.answer(ANSWER_SECONDS)
        except BaseException:
            self.close()
            raise

    def open(self, point: Point) -> None:
        """Begins a point: its sequences get their prompts."""
        self._worker.ask({"open": asdict(point)}, ANSWER_SECONDS)

    def steps(self, count: int) -> list[float]:
        """Seconds of the next steps of the point that was opened; see `pair_worker.Blocks`."""
        steps: list[float] = self._worker.ask({"steps": count}, ANSWER_SECONDS)["steps"]
        return steps

    def close(self) -> None:
        self._worker.close()
