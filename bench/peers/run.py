"""treadle beside its peers: the same file, threads and points, in turns in one run; prints rates and ratios.

Usage: python bench/peers/run.py [--model smollm2 | FILE.gguf | synthetic:llama:1b:q4_k] [--peers llama.cpp,...]
           [--numerics fast|bf16|exact] [--openvino-precision f32] [--turns 5] [--json]
Each peer lives in its own venv, made on the first run. One that is not to be had, or that cannot run the model or a
point, is named with the reason.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peers import PEERS, TREADLE, Unavailable, Worker, command_of
from treadle.bench.limits import probe_limits
from treadle.bench.measure import room
from treadle.bench.points import Limits, Point, Work, add_point_arguments, choose_points
from treadle.cli.options import NUMERICS
from treadle.formats import hub
from treadle.inference.tools import write_synthetic

RESULTS = Path(__file__).resolve().parents[1] / "results"
SETTLE_SECONDS = 0.2
"""Between two systems, so that the one before has parked its threads."""
WARM_UP = Point("prefill", tokens=64, batch=1, prompt=0)
FIRST_TOKEN = Point("prefill", tokens=32, batch=1, prompt=0)
"""Its time runs from the start of a fresh process."""
POINTS = ("prefill", "decode", "batch", "load")

Start = Callable[[], Worker]


@dataclass
class System:
    """One of those measured: how to start it, the process that holds it, and what was seen of it."""

    name: str
    start: Start
    worker: Worker | None = None
    why_not: str | None = None
    seconds: dict[Point, list[float | None]] = field(default_factory=dict)
    work: dict[Point, Work] = field(default_factory=dict)
    failed: dict[Point, str] = field(default_factory=dict)

    def open(self) -> None:
        try:
            self.worker = self.start()
            self.worker.measure(WARM_UP)
        except Unavailable as error:
            self.why_not = str(error)

    def measure(self, point: Point) -> None:
        """Notes the point's seconds, or None; a point that failed once is not tried again."""
        found = None
        if self.worker is not None and self.why_not is None and point not in self.failed:
            try:
                answer = self.worker.measure(point) if point is not FIRST_TOKEN else self._first_token()
                found = float(answer["seconds"])
                if "work" in answer:
                    self.work[point] = Work(**answer["work"])
            except Unavailable as error:
                self.failed[point] = str(error)
        self.seconds.setdefault(point, []).append(found)

    def _first_token(self) -> dict[str, float]:
        worker = self.start()
        try:
            worker.measure(FIRST_TOKEN)
            return {"seconds": time.perf_counter() - worker.started}
        finally:
            worker.close()

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()


def take_turns(
    systems: list[System], points: list[Point], turns: int, settle: float, say: Callable[[str], None]
) -> None:
    """Every point of every system once a turn; who goes first changes with the turn."""
    for turn in range(turns):
        for point in points:
            say(f"turn {turn + 1} of {turns}: {label(point)}")
            first = turn % len(systems)
            for system in [*systems[first:], *systems[:first]]:
                time.sleep(settle)
                system.measure(point)


def label(point: Point) -> str:
    return "first token, cold" if point is FIRST_TOKEN else point.label


def report(systems: list[System], points: list[Point], limits: Limits | None) -> dict[str, Any]:
    """Medians of each system, and treadle's ratio to each peer: the median over turns of what both did in that turn."""
    treadle, peers = systems[0], systems[1:]
    return {
        "systems": {
            system.name: {"version": system.worker.version, "ran": system.worker.ran}
            if system.worker is not None
            else {"unavailable": system.why_not}
            for system in systems
        },
        "limits": None if limits is None else limits.rounded(),
        "points": [
            {
                **asdict(point),
                "label": label(point),
                "seconds": {system.name: _median(system.seconds[point]) for system in systems},
                "tok_s": {system.name: _rate(point, _median(system.seconds[point])) for system in systems},
                "ratio": {peer.name: _ratio(treadle.seconds[point], peer.seconds[point]) for peer in peers},
                "share_of_limit": _share(treadle, point, limits),
                "failed": {system.name: system.failed[point] for system in systems if point in system.failed},
            }
            for point in points
        ],
    }


def _median(found: list[float | None]) -> float | None:
    known = [value for value in found if value is not None]
    return statistics.median(known) if known else None


def _rate(point: Point, seconds: float | None) -> float | None:
    return None if seconds is None or point is FIRST_TOKEN else round(point.tokens * point.batch / seconds, 2)


def _ratio(ours: list[float | None], theirs: list[float | None]) -> float | None:
    """How many times as fast as the other: pair by pair, then the median."""
    pairs = [b / a for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    return round(statistics.median(pairs), 3) if pairs else None


def _share(system: System, point: Point, limits: Limits | None) -> float | None:
    seconds = _median(system.seconds[point])
    if seconds is None or limits is None or point not in system.work:
        return None
    return round(system.work[point].least_seconds(limits) / seconds, 4)


def table(found: dict[str, Any]) -> str:
    names = [name for name, about in found["systems"].items() if "unavailable" not in about]
    lines = []
    for name, about in found["systems"].items():
        lines.append(
            f"{name}: not measured: {about['unavailable']}"
            if "unavailable" in about
            else f"{name}: {about['version']}; {about['ran']}"
        )
    lines += ["", " ".join([f"{'tokens/s':20}", *(f"{name:>13}" for name in names), f"{'of the limit':>13}"])]
    for point in found["points"]:
        share = point["share_of_limit"]
        cells = [_cell(point["tok_s"][name], point["seconds"][name]) for name in names]
        lines.append(f"{point['label']:20} {' '.join(cells)} {'' if share is None else format(share, '.0%'):>13}")
    peers = names[1:]
    lines += [
        "",
        " ".join([f"{'treadle is faster by':20}", *(f"{name:>13}" for name in peers), f"{'the best peer':>24}"]),
    ]
    for point in found["points"]:
        ratios = {name: point["ratio"][name] for name in peers if point["ratio"][name] is not None}
        cells = [f"{ratios[name]:>12.2f}x" if name in ratios else f"{'-':>13}" for name in peers]
        best = min(ratios, key=ratios.__getitem__, default=None)
        lines.append(
            f"{point['label']:20} {' '.join(cells)} {'-' if best is None else f'{ratios[best]:.2f}x {best}':>24}"
        )
    for point in found["points"]:
        lines += [f"{name} failed at {point['label']}: {why}" for name, why in point["failed"].items()]
    return "\n".join(lines)


def _cell(rate: float | None, seconds: float | None) -> str:
    if rate is not None:
        return f"{rate:>13.1f}"
    return f"{'-':>13}" if seconds is None else f"{f'{seconds:.2f} s':>13}"


def main() -> None:
    parser = argparse.ArgumentParser(description="treadle beside its peers, in turns in one run")
    parser.add_argument("--model", default="smollm2", help="a known name, a .gguf file, or synthetic:FAMILY:SHAPE:TYPE")
    parser.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--numerics", choices=NUMERICS, default="fast", help="treadle's (default: %(default)s)")
    parser.add_argument("--openvino-precision", metavar="TYPE", help="openvino's INFERENCE_PRECISION_HINT, as in f32")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--settle", type=float, default=SETTLE_SECONDS, help="seconds between two measurements")
    parser.add_argument("--json", action="store_true")
    add_point_arguments(parser, POINTS, lengths=(512,), depths=(128,), batches=(8, 32))
    options = parser.parse_args()
    names = options.peers.split(",")
    if unknown := set(names) - set(PEERS):
        parser.error(f"unknown peers {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}")
    found = run(options, names)
    print(json.dumps(found) if options.json else table(found))


def model_file(model: str) -> Path:
    """The GGUF file of a model; a synthetic one is written under bench/results, once."""
    if not model.startswith("synthetic:"):
        return Path(hub.resolve(model).path)
    path = RESULTS / f"{model.replace(':', '-')}.gguf"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        print(f"writing {path}", file=sys.stderr)
        write_synthetic(model, path)
    return path


def run(options: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    model = model_file(options.model)
    points = list(choose_points(options.points, options.lengths, options.depths, options.batches))
    space = room([*points, WARM_UP])
    sizes = (options.threads, space["max_batch"], space["max_length"])
    points += [FIRST_TOKEN] if "load" in options.points else []

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    asked = {TREADLE.name: {"numerics": options.numerics}}
    if options.openvino_precision:
        asked["openvino"] = {"INFERENCE_PRECISION_HINT": options.openvino_precision}
    systems = []
    for peer in (TREADLE, *(PEERS[name] for name in names)):
        say(f"starting {peer.name}")
        system = System(peer.name, lambda peer=peer: Worker(command_of(peer), model, *sizes, asked.get(peer.name, {})))
        systems.append(system)
        system.open()
    if systems[0].why_not is not None:
        raise SystemExit(f"treadle cannot be measured: {systems[0].why_not}")
    try:
        probes = [probe_limits(options.threads, model.stat().st_size)]
        take_turns(systems, points, options.turns, options.settle, say)
        probes.append(probe_limits(options.threads, model.stat().st_size))
    finally:
        for system in systems:
            system.close()
    about = {"model": options.model, "numerics": options.numerics, "threads": options.threads, "turns": options.turns}
    return about | report(systems, points, Limits.best(probes))


if __name__ == "__main__":
    main()
