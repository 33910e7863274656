"""A whole bench run, its JSON and its table."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from treadle.bench.limits import probe_limits
from treadle.bench.measure import measure, open_engine
from treadle.bench.points import POINTS, Limits, Measurement
from treadle.inference.cost import counting

COUNTED_TOKENS = 2
"""Counted runs are not timed, so short ones do."""


def run_bench(
    model: str, *, threads: int | None, numerics: str, repeat: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Every point ``repeat`` times, in turns, the limits probed in each turn; medians of the points.

    A limit is the best its probe saw: other work on the machine can only lower what a probe sees. ``say`` is told
    what is under way.
    """
    say("loading")
    engine = open_engine(model, threads=threads, numerics=numerics)
    probes: list[Limits] = []
    runs: list[list[Measurement]] = []
    for turn in range(repeat):
        say(f"probing the machine's limits, {turn + 1} of {repeat}")
        probes.append(probe_limits(engine.info.threads))
        row = []
        for point in POINTS:
            say(f"{point.label}, {turn + 1} of {repeat}")
            row.append(measure(engine, point))
        runs.append(row)
    say("counting")
    with counting(engine.core) as counters:
        for point in POINTS:
            measure(engine, replace(point, tokens=min(point.tokens, COUNTED_TOKENS)))
    limits = Limits(max(p.read_gb_s for p in probes), max(p.int8_gop_s for p in probes))
    return {
        "model": engine.info.model,
        "backend": engine.info.backend,
        "isa": engine.info.isa,
        "threads": engine.info.threads,
        "numerics": engine.info.numerics,
        "points": [_point(list(column), limits) for column in zip(*runs, strict=True)],
        "limits": {"read_gb_s": round(limits.read_gb_s, 2), "int8_gop_s": round(limits.int8_gop_s, 1)},
        "per_slot_fallbacks": counters.per_slot_fallbacks,
    }


def _point(measurements: list[Measurement], limits: Limits) -> dict[str, Any]:
    point = measurements[0].point
    return {
        "name": point.name,
        "tokens": point.tokens,
        "batch": point.batch,
        "prompt": point.prompt,
        "tok_s": round(statistics.median(m.tok_s for m in measurements), 2),
        "best_tok_s": round(max(m.tok_s for m in measurements), 2),
        "share_of_limit": round(statistics.median(m.share_of_limit(limits) for m in measurements), 4),
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    limits = report["limits"]
    how = f"{report['isa']}, {report['threads']} threads, {report['numerics']}"
    lines = [
        f"{report['model']} on {report['backend']} ({how})",
        f"limits: reads {limits['read_gb_s']} GB/s, int8 {limits['int8_gop_s']} GOP/s",
        f"{'point':22} {'tokens/s':>10} {'best':>10} {'of the limit':>13}",
    ]
    for point in report["points"]:
        label = f"{point['name']} {point['tokens']} x {point['batch']}"
        lines.append(
            f"{label:22} {point['tok_s']:>10.1f} {point['best_tok_s']:>10.1f} {point['share_of_limit']:>12.0%}"
        )
    lines.append(f"per-slot fallbacks: {report['per_slot_fallbacks']}")
    return "\n".join(lines)
