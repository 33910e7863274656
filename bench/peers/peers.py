"""The peers: what each is made of, its venv, and the process that holds it while it is measured."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from treadle.bench.line_worker import LineWorker
from treadle.bench.points import Point

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE.parent.parent / "requirements"
LOAD_SECONDS = 900
POINT_SECONDS = 300
"""Where other work keeps the machine busy, spinning threads can make a point take a hundred times as long."""


class Unavailable(Exception):
    """The system cannot be measured; says why."""


@dataclass(frozen=True)
class Peer:
    """A system that is measured. ``requirements``: names requirements/peer-NAME.txt; None: this interpreter's own."""

    name: str
    worker: str
    requirements: str | None
    note: str = ""
    build: Mapping[str, str] = field(default_factory=dict)
    """Environment of the install."""

    @property
    def venv(self) -> Path:
        return HERE / f".venv-{self.requirements}"


TREADLE = Peer("treadle", "treadle_worker.py", None)
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "llama.cpp",
            "llama_cpp_worker.py",
            "llama_cpp",
            "builds from source, some 8 minutes",
            {"CMAKE_ARGS": f"-DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS='-include {HERE / 'amx_gcc12.h'}'"},
        ),
        Peer("ik_llama.cpp", "llama_cpp_worker.py", "ik_llama_cpp"),
        Peer("openvino", "openvino_worker.py", "openvino"),
        Peer("transformers", "transformers_worker.py", "transformers"),
    )
}


def interpreter(peer: Peer) -> Path:
    """The peer's Python; makes its venv first. An aborted install leaves nothing behind. Raises Unavailable."""
    if peer.requirements is None:
        return Path(sys.executable)
    wanted = REQUIREMENTS / f"peer-{peer.requirements}.txt"
    python, stamp = peer.venv / "bin" / "python", peer.venv / "done"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return python
    shutil.rmtree(peer.venv, ignore_errors=True)
    print(f"installing {peer.name} in its own venv {peer.note}", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", peer.venv], check=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", wanted]
        if peer.build:
            command.append("--no-cache-dir")  # a wheel of another build may lie there
        subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, **peer.build})
        stamp.write_text(wanted.read_text())
    except subprocess.CalledProcessError as error:
        shutil.rmtree(peer.venv, ignore_errors=True)
        raise Unavailable(f"cannot be installed here (pip ended with {error.returncode})") from None
    except BaseException:
        shutil.rmtree(peer.venv, ignore_errors=True)
        raise
    return python


class Worker:
    """The process that holds a system; see worker.py for what is said to it. Raises Unavailable where it fails."""

    def __init__(
        self,
        command: list[Any],
        model: Path,
        threads: int,
        max_batch: int,
        max_length: int,
        options: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.started = time.perf_counter()
        sizes = map(str, (threads, max_batch, max_length))
        words = [*command, model, *sizes, *(f"{key}={value}" for key, value in options.items())]
        self._process = LineWorker(words, Unavailable, {"OMP_NUM_THREADS": str(threads)})
        try:
            hello = self._process.answer(LOAD_SECONDS)
            self.version, self.ran = str(hello["version"]), str(hello["ran"])
        except BaseException:
            self.close()
            raise

    def measure(self, point: Point) -> dict[str, Any]:
        """The worker's answer: "seconds", and what more it tells."""
        return self._process.ask(asdict(point), POINT_SECONDS)

    def close(self) -> None:
        """Ends the worker, whatever state it is in."""
        self._process.close()


def command_of(peer: Peer) -> list[Any]:
    """How the peer's worker is started; installs what it needs. Raises Unavailable."""
    return [interpreter(peer), HERE / peer.worker]
