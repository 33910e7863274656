"""A whole bench run, its JSON and its table."""

import statistics
from collections.abc import Callable, Sequence
from itertools import chain, compress
from typing import Any

import msgspec

from treadle.bench.first_token import cold_start
from treadle.bench.limits import probe_limits
from treadle.bench.measure import SPARE, measure, room, sizes
from treadle.bench.points import Limits, Measurement, Point, for_encoder
from treadle.errors import InvalidRequest
from treadle.inference.cost import counting
from treadle.inference.engine import load as load_engine
from treadle.inference.loaded import Engine
from treadle.inference.memory import peak_rss_bytes
from treadle.inference.options import EngineOptions

COUNTED_PROMPT = 32
COUNTED = Point("decode", 4, 2, COUNTED_PROMPT)
"""Counted runs are not timed, so short ones do: two sequences of as many tokens and a few more."""
WARM_UP_TOKENS = 512
"""The first step of so many rows also waits for the memory that it touches first."""


def run_bench(
    model: str,
    points: Sequence[Point],
    options: EngineOptions,
    *,
    load: bool,
    repeat: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Every point ``repeat`` times, in turns, the limits probed in each turn; medians of the points.

    ``options``: their sizes are chosen here. ``load``: also starts fresh processes, from which the time to the first
    token is taken. A limit is the best its probe saw: other work on the machine can only lower what a probe sees.
    Points longer than the model's context are left out, and listed; those of an encoder are `points.for_encoder`'s.
    ``say`` is told what is under way. Raises InvalidRequest where nothing is left to measure.
    """

    def sizing(positions: int, encodes: bool) -> dict[str, int]:
        fitting, _ = _split(points, positions, encodes)
        if not fitting and not load:
            raise InvalidRequest("no point fits the model's positions: give shorter --lengths and --depths")
        return sizes(**room([*fitting, COUNTED]))

    say("loading")
    engine = load_engine(model, options, sizing=sizing)
    encodes = engine.encoder is not None
    fitting, left_out = _split(points, engine.plans.facts.max_positions, encodes)
    probes: list[Limits] = []
    runs: list[list[Measurement]] = []
    starts: list[dict[str, float]] = []
    longest = max(point.length for point in [*fitting, COUNTED])
    measure(engine, Point("encode" if encodes else "prefill", min(WARM_UP_TOKENS, longest), 1, 0))
    for turn in range(repeat):
        say(f"probing the machine's limits, {turn + 1} of {repeat}")
        probes.append(probe_limits(engine.info.threads, engine.cost.weight_bytes))
        row = []
        for point in fitting:
            say(f"{point.label}, {turn + 1} of {repeat}")
            row.append(measure(engine, point))
        runs.append(row)
        if load:
            say(f"first token of a fresh process, {turn + 1} of {repeat}")
            starts.append(cold_start(model, {**msgspec.structs.asdict(options), "threads": engine.info.threads}))
    say("counting")
    counted = _counted(engine)
    limits = Limits.best(probes)
    return {
        "model": engine.info.model,
        "backend": engine.info.backend,
        "fallback": engine.info.instead_of,
        "isa": engine.info.isa,
        "threads": engine.info.threads,
        "numerics": engine.info.numerics,
        "kv_dtype": engine.kv_dtype,
        "quantize": options.quantize,
        "points": [_point(list(column), limits) for column in zip(*runs, strict=True)],
        "left_out": [point.label for point in left_out],
        "limits": limits.rounded(),
        "weights": _weights(engine),
        "memory": {"quoted_bytes": engine.memory_quote.total_bytes, "peak_rss_bytes": peak_rss_bytes()},
        "load": _load(starts),
        "plan": engine.info.plan_hash,
        "per_slot_fallbacks": counted.pop("per_slot_fallbacks"),
        "counted": counted,
    }


def _counted(engine: Engine) -> dict[str, Any]:
    """Of a decoded token alone, or of an encoded text: adapter calls, kernel launches, and bytes as planned; and the
    loops over slots, of steps with several too."""
    if engine.generator is None:
        (found, several), before, steps = (_count(engine, "encode", 32, batch) for batch in (1, 2)), (0, 0, 0, 0), 1
    else:
        found, before, steps = _count(engine, "decode", 4, 1), _count(engine, "decode", 2, 1), 2
        several = _count(engine, "decode", 2, 2)
    dispatches, launches, planned, _ = ((a - b) / steps for a, b in zip(found, before, strict=True))
    return {
        "dispatches": round(dispatches, 2),
        "launches": round(launches, 2),
        "planned_bytes": round(planned),
        "per_slot_fallbacks": found[-1] + several[-1],
    }


def _count(engine: Engine, name: str, tokens: int, batch: int) -> tuple[int, int, int, int]:
    """Of all steps of a point: dispatches, launches, planned bytes, loops over slots."""
    with counting(engine.generator or engine.embedder) as found:
        measure(engine, Point(name, tokens, batch, COUNTED_PROMPT if name == "decode" else 0))
    return sum(found.dispatches.values()), found.launches, found.planned_bytes, found.per_slot_fallbacks


def _split(points: Sequence[Point], positions: int, encodes: bool) -> tuple[list[Point], list[Point]]:
    """Those that fit the model's positions, and those that do not."""
    found = for_encoder(points) if encodes else points
    fits = [point.length + point.lead + SPARE <= positions for point in found]
    return list(compress(found, fits)), [point for point, fit in zip(found, fits, strict=True) if not fit]


def _weights(engine: Engine) -> dict[str, int]:
    """Packed bytes: all, and those that a decode step reads."""
    return {"packed_bytes": engine.memory_quote.weights_bytes, "read_bytes_per_step": engine.cost.weight_bytes}


def _load(starts: list[dict[str, float]]) -> dict[str, Any] | None:
    """Medians over the fresh processes; ``first_token_all_s`` in the order they ran."""
    if not starts:
        return None
    medians = {name: statistics.median(start[name] for start in starts) for name in starts[0]}
    return {
        **{name: round(value, 4) if name.endswith("_s") else int(value) for name, value in medians.items()},
        "first_token_all_s": [round(start["first_token_s"], 4) for start in starts],
    }


def _point(measurements: list[Measurement], limits: Limits) -> dict[str, Any]:
    """``p50_ms`` and ``p95_ms``: of the steps of all turns together."""
    point = measurements[0].point
    steps = sorted(chain.from_iterable(m.steps for m in measurements))
    return {
        "name": point.name,
        "tokens": point.tokens,
        "batch": point.batch,
        "prompt": point.prompt,
        "tok_s": round(statistics.median(m.tok_s for m in measurements), 2),
        "best_tok_s": round(max(m.tok_s for m in measurements), 2),
        "share_of_limit": round(statistics.median(m.share_of_limit(limits) for m in measurements), 4),
        "p50_ms": round(1e3 * quantile(steps, 0.50), 3),
        "p95_ms": round(1e3 * quantile(steps, 0.95), 3),
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """The least value that at least ``share`` of the ordered values do not exceed (nearest rank)."""
    return ordered[max(0, -(-round(share * 1000) * len(ordered) // 1000) - 1)]


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [heading(report), *numerics_hint(report), limits_line(report)]
    if report["points"]:
        lines.append(
            f"{'point':22} {'tokens/s':>10} {'best':>10} {'of the limit':>13} {'step p50':>12} {'step p95':>12}"
        )
    for point in report["points"]:
        lines.append(
            f"{label(point):22} {point['tok_s']:>10.1f} {point['best_tok_s']:>10.1f} {point['share_of_limit']:>13.0%}"
            f" {point['p50_ms']:>9.2f} ms {point['p95_ms']:>9.2f} ms"
        )
    if report["left_out"]:
        lines.append(f"left out, longer than the model's positions: {', '.join(report['left_out'])}")
    lines += [start_line(report)] if report["load"] else []
    lines.append(memory_line(report))
    lines.append(counted_line(report))
    return "\n".join(lines)


def label(point: dict[str, Any]) -> str:
    return Point(point["name"], point["tokens"], point["batch"], point["prompt"]).label


def heading(report: dict[str, Any]) -> str:
    instead = f", the fallback: {report['fallback']}" if report["fallback"] else ""
    return f"{report['model']} on {report['backend']} ({settings(report)}){instead}"


def settings(report: dict[str, Any]) -> str:
    """What calculates, in which types."""
    found = [report["isa"], f"{report['threads']} threads", report["numerics"]]
    if report["kv_dtype"]:
        found.append(f"keys and values {report['kv_dtype']}")
    if report["quantize"]:
        found.append(f"quantised to {report['quantize']}")
    return ", ".join(found)


def numerics_hint(report: dict[str, Any]) -> list[str]:
    """Which other numerics are the faster choice on this ISA, if any."""
    tiles, bf16 = report["isa"] == "amx", report["numerics"] == "bf16"
    if tiles and not bf16:
        return ["with this machine's matrix tiles --numerics bf16 is faster at prompts and batches from about 32"]
    if bf16 and not tiles:
        return ["without matrix tiles --numerics fast is faster than bf16"]
    return []


def limits_line(report: dict[str, Any]) -> str:
    limits = report["limits"]
    return (
        f"limits: reads {limits['read_gb_s']} GB/s; int8 {limits['int8_gop_s']}, bf16 {limits['bf16_gop_s']}, "
        f"f32 {limits['f32_gop_s']} GOP/s"
    )


def start_line(report: dict[str, Any]) -> str:
    load = report["load"]
    return (
        f"fresh process: first token after {load['first_token_s']:.2f} s ({load['load_s']:.2f} s of loading, "
        f"a prompt of {load['prompt_tokens']} tokens in {load['prefill_s']:.3f} s), peak resident "
        f"{load['peak_rss_bytes'] / 1e6:.0f} MB of {load['quoted_bytes'] / 1e6:.0f} MB quoted"
    )


def counted_line(report: dict[str, Any]) -> str:
    counted = report["counted"]
    return (
        f"a step of one sequence: {counted['dispatches']:g} dispatches, {counted['launches']:g} kernel launches, "
        f"{counted['planned_bytes'] / 1e6:.1f} MB as planned; per-slot fallbacks: {report['per_slot_fallbacks']}"
    )


def memory_line(report: dict[str, Any]) -> str:
    memory, weights = report["memory"], report["weights"]
    return (
        f"memory: {memory['quoted_bytes'] / 1e6:.0f} MB quoted for these points, peak resident "
        f"{memory['peak_rss_bytes'] / 1e6:.0f} MB; weights {weights['packed_bytes'] / 1e6:.1f} MB, a step reads "
        f"{weights['read_bytes_per_step'] / 1e6:.1f} MB"
    )
