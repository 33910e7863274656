"""treadle beside llama.cpp: the same GGUF, threads and points, in turns in one run; prints the ratios.

llama.cpp lives in its own venv (bench/peers/.venv-llama_cpp), made on the first run; its build takes some 8 minutes.
Usage: python bench/peers/llama_cpp.py [--model smollm2] [--threads 2] [--turns 3] [--json]
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from treadle.bench.limits import probe_limits
from treadle.bench.measure import measure, open_engine
from treadle.bench.points import MAX_BATCH, MAX_LENGTH, POINTS, Limits, Measurement, Point
from treadle.formats import hub

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv-llama_cpp"
REQUIREMENTS = HERE.parent.parent / "requirements" / "peer-llama_cpp.txt"
SETTLE_SECONDS = 0.2
"""Between two systems, so that the one before has parked its threads."""

PATIENCE_SECONDS = 180


def peer_python() -> Path:
    """The peer's interpreter; makes its venv first. An aborted build leaves nothing behind."""
    python, stamp = VENV / "bin" / "python", VENV / "done"
    if stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
        return python
    shutil.rmtree(VENV, ignore_errors=True)
    print("building llama.cpp in its own venv, some 8 minutes", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS], check=True)
    except BaseException:
        shutil.rmtree(VENV, ignore_errors=True)
        raise
    stamp.write_text(REQUIREMENTS.read_text())
    return python


class Peer:
    """The worker process that holds llama.cpp."""

    def __init__(self, python: Path, model: Path, threads: int) -> None:
        self.process = subprocess.Popen(
            # -P: this file's folder, which holds a module of the peer's name, stays off the path.
            [python, "-P", HERE / "llama_cpp_worker.py", model, str(threads), str(MAX_BATCH), str(MAX_LENGTH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )

    def tok_s(self, point: Point) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(point)) + "\n")
        self.process.stdin.flush()
        overdue = threading.Timer(PATIENCE_SECONDS, self.process.kill)
        overdue.start()
        line = self.process.stdout.readline()
        overdue.cancel()
        if not line:
            raise SystemExit(
                f"the llama.cpp worker ended with {self.process.wait()}; its threads spin: where other work "
                f"keeps the machine busy, a point can take longer than the {PATIENCE_SECONDS} s it is given"
            )
        return point.tokens * point.batch / float(json.loads(line)["seconds"])

    def close(self) -> None:
        """Ends the worker, whatever state it is in."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def run(model: str, threads: int, turns: int) -> dict[str, object]:
    path = hub.resolve(model).path
    peer = Peer(peer_python(), path, threads)
    engine = open_engine(model, threads=threads, numerics="fast")
    ours: dict[Point, list[Measurement]] = {point: [] for point in POINTS}
    theirs: dict[Point, list[float]] = {point: [] for point in POINTS}
    probes: list[Limits] = []
    try:
        for turn in range(turns):
            probes.append(probe_limits(threads))
            for point in POINTS:
                print(f"turn {turn + 1} of {turns}: {point.label}", file=sys.stderr)
                for peers_turn in (turn % 2 == 1, turn % 2 == 0):  # who goes first changes with the turn
                    time.sleep(SETTLE_SECONDS)
                    if peers_turn:
                        theirs[point].append(peer.tok_s(point))
                    else:
                        ours[point].append(measure(engine, point))
    finally:
        peer.close()
    limits = Limits(max(p.read_gb_s for p in probes), max(p.int8_gop_s for p in probes))
    return {
        "model": model,
        "threads": threads,
        "turns": turns,
        "limits": asdict(limits),
        "points": [row(point, ours[point], theirs[point], limits) for point in POINTS],
    }


def row(point: Point, ours: list[Measurement], theirs: list[float], limits: Limits) -> dict[str, object]:
    """``ratio``: the median over turns of what the two did one right after the other."""
    return {
        **asdict(point),
        "treadle_tok_s": round(statistics.median(m.tok_s for m in ours), 2),
        "llama_cpp_tok_s": round(statistics.median(theirs), 2),
        "ratio": round(statistics.median(m.tok_s / t for m, t in zip(ours, theirs, strict=True)), 3),
        "share_of_limit": round(statistics.median(m.share_of_limit(limits) for m in ours), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="treadle beside llama.cpp, in turns in one run")
    parser.add_argument("--model", default="smollm2", help="a known name or a .gguf file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = run(options.model, options.threads, options.turns)
    if options.json:
        print(json.dumps(report))
        return
    print(f"{'point':20} {'treadle':>10} {'llama.cpp':>10} {'ratio':>7}   (tokens/s, medians of {options.turns})")
    for point in report["points"]:
        label = f"{point['name']} {point['tokens']} x {point['batch']}"
        print(f"{label:20} {point['treadle_tok_s']:>10.1f} {point['llama_cpp_tok_s']:>10.1f} {point['ratio']:>7.2f}")


if __name__ == "__main__":
    main()
