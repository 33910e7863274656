"""One step, op by op: its time, what it must read and calculate, and its share of what the machine could do."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from treadle.bench.limits import probe_limits
from treadle.bench.measure import SPARE, random_prompts, sizes
from treadle.bench.points import STEP_ROWS, Limits, Point, Work
from treadle.bench.report import settings
from treadle.errors import InvalidRequest
from treadle.inference.cost import counting
from treadle.inference.encoder import Tokens
from treadle.inference.engine import load
from treadle.inference.loaded import Engine, OpCost
from treadle.inference.options import EngineOptions
from treadle.inference.request import SamplingParams


def run_trace(
    model: str,
    point: Point,
    options: EngineOptions,
    *,
    repeat: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The step of a point, a whole prefill or one decode step behind its prompts: medians over `repeat` runs.

    Of an encoder a text, or several, of as many tokens as the point has or comes after. An op of the backend may stand
    for several instructions; its cost is theirs together. `options`: their sizes are chosen here. Raises InvalidRequest
    for what is more than one step.
    """

    def sizing(positions: int, encodes: bool) -> dict[str, int]:
        asked = _one_step(point, encodes)
        return sizes(asked.batch, (asked.prompt or asked.tokens) + (0 if encodes else repeat + asked.lead))

    say("loading")
    engine = load(model, options, sizing=sizing)
    point = _one_step(point, engine.encoder is not None)
    say("probing the machine's limits")
    limits = probe_limits(engine.info.threads, engine.cost.weight_bytes)
    say(point.label)
    runs = list(_steps(engine, point, repeat))
    ops, found = engine.ops(decode=point.name == "decode"), []
    for index, op in enumerate(ops):
        seconds = statistics.median(run[index] for run in runs) / 1e9
        found.append({"index": index, **_about(op), **_measured([op], seconds, point, limits)})
    return {
        "model": engine.info.model,
        "backend": engine.info.backend,
        "isa": engine.info.isa,
        "threads": engine.info.threads,
        "numerics": engine.info.numerics,
        "kv_dtype": engine.kv_dtype,
        "quantize": options.quantize,
        "point": point.label,
        "steps": len(runs),
        "limits": limits.rounded(),
        "step_ms": round(sum(op["ms"] for op in found), 5),
        "groups": _groups(ops, found, point, limits),
        "ops": found,
    }


def _one_step(point: Point, encodes: bool) -> Point:
    """The point, or a text of an encoder in its place. Raises InvalidRequest for what is more than one step."""
    if encodes:
        point = Point("encode", point.prompt or point.tokens, point.batch, 0)
    tokens = point.batch * point.tokens
    if point.name != "decode" and tokens > STEP_ROWS:
        raise InvalidRequest(f"{point.name} of {tokens} tokens is more than one step; trace at most {STEP_ROWS}")
    return point


def _steps(engine: Engine, point: Point, repeat: int) -> Iterator[list[int]]:
    """Nanoseconds of each op, of `repeat` steps."""
    if engine.encoder is not None:
        texts = [Tokens(ids) for ids in random_prompts(engine.encoder.vocab_size, point.batch, point.tokens)]
        engine.encoder.encode(texts)  # touches its memory for the first time
        for _ in range(repeat):
            with counting(engine.encoder) as counters:
                engine.encoder.encode(texts)
            yield [op.nanoseconds for op in counters.ops]
        return
    core = engine.core
    params = SamplingParams(temperature=0, max_tokens=repeat + point.lead + SPARE, ignore_eos=True)
    prompts = random_prompts(core.vocab_size, point.batch, point.prompt or point.tokens)
    runs = 1 if point.name == "decode" else repeat + 1
    for run in range(runs):
        requests = [request for prompt in prompts for request in core.add(prompt, params)]
        try:
            if point.name == "decode":
                while any(request.output_length == 0 for request in requests):
                    core.step()
                core.step()
                for _ in range(repeat):
                    yield _counted(engine)
            elif run == 0:
                core.step()  # touches its memory for the first time
            else:
                yield _counted(engine)
        finally:
            for request in requests:
                core.abort(request)


def _counted(engine: Engine) -> list[int]:
    with counting(engine.core) as counters:
        engine.core.step()
    return [op.nanoseconds for op in counters.ops]


def _about(op: OpCost) -> dict[str, Any]:
    """What an op stands for."""
    return {
        "name": " + ".join(cost.opcode.name.lower() for cost in op.costs),
        "layer": max(cost.layer for cost in op.costs),
        "instructions": [op.instructions.start, op.instructions.stop - 1],
    }


def _work(ops: Sequence[OpCost], point: Point) -> Work:
    """What ops must at least move and calculate in the point's step."""
    rows = point.batch * (1 if point.name == "decode" else point.tokens)
    read, totals = 0.0, {"int8": 0.0, "bf16": 0.0, "f32": 0.0}
    for cost in (cost for op in ops for cost in op.costs):
        taken = point.batch if cost.opcode.name == "LM_HEAD" else rows
        for kind in totals:
            totals[kind] += taken * getattr(cost.row, kind)
        seen = _seen(point, cost.window)
        totals["f32"] += cost.key_operations * seen
        once = rows if cost.opcode.name == "EMBEDDING" else 1
        keys = seen if point.name == "decode" else point.batch * point.tokens  # a prefill's rows share what they read
        read += once * cost.weight_bytes + cost.state_bytes_per_token * keys + point.batch * cost.state_bytes
    return Work(read, totals["int8"], totals["bf16"], totals["f32"])


def _seen(point: Point, window: int) -> float:
    """Keys that the step's rows see, counted for each row."""
    most = window or float("inf")
    if point.name == "decode":
        return point.batch * min(point.prompt + 1, most)
    if point.name == "encode":
        return point.batch * point.tokens * min(point.tokens, most)
    return point.batch * sum(min(row + 1, most) for row in range(point.tokens))


def _measured(ops: Sequence[OpCost], seconds: float, point: Point, limits: Limits) -> dict[str, Any]:
    work = _work(ops, point)
    operations = work.int8_operations + work.bf16_operations + work.f32_operations
    least = work.least_seconds(limits)
    reading = work.read_bytes / limits.read_gb_s / 1e9
    return {
        "ms": round(1e3 * seconds, 5),
        "bytes": round(work.read_bytes),
        "operations": round(operations),
        "gb_s": round(work.read_bytes / seconds / 1e9, 2) if seconds else 0.0,
        "gop_s": round(operations / seconds / 1e9, 2) if seconds else 0.0,
        "bound": "reading" if reading >= least else "calculating",
        "share_of_limit": round(least / seconds, 4) if seconds else 0.0,
    }


def _groups(
    ops: Sequence[OpCost], found: Sequence[dict[str, Any]], point: Point, limits: Limits
) -> list[dict[str, Any]]:
    """Ops of one name and cost together, the slowest first. `found`: what was measured of each."""
    members: dict[tuple[str, Any], list[int]] = {}
    for index, op in enumerate(ops):
        alike = tuple((c.row, c.weight_bytes, c.window) for c in op.costs)
        members.setdefault((found[index]["name"], alike), []).append(index)
    groups = []
    for (name, _), indices in members.items():
        seconds = sum(found[i]["ms"] for i in indices) / 1e3
        measured = _measured([ops[i] for i in indices], seconds, point, limits)
        groups.append({"name": name, "count": len(indices), **measured})
    return sorted(groups, key=lambda group: -float(group["ms"]))


def table(report: dict[str, Any], *, every: bool = False) -> str:
    """For people: ops that are alike together, or every op."""
    limits = report["limits"]
    lines = [
        f"{report['model']} on {report['backend']} ({settings(report)}): {report['point']}, a step of "
        f"{report['step_ms']:.3f} ms (median of {report['steps']})",
        f"limits: read {limits['read_gb_s']:.1f} GB/s, int8 {limits['int8_gop_s']:.0f}, "
        f"bf16 {limits['bf16_gop_s']:.0f}, f32 {limits['f32_gop_s']:.0f} GOP/s",
        "",
        f"{'op':52} {'':>5} {'ms':>9} {'step':>6} {'MB':>9} {'GB/s':>7} {'GOP/s':>8} {'limit':>6}  bound by",
    ]
    for row in report["ops"] if every else report["groups"]:
        name = row["name"] if not every or row["layer"] < 0 else f"{row['layer']}: {row['name']}"
        count = "" if every else f"x{row['count']}"
        share = row["ms"] / report["step_ms"] if report["step_ms"] else 0.0
        lines.append(
            f"{name[:52]:52} {count:>5} {row['ms']:9.4f} {share:6.1%} {row['bytes'] / 1e6:9.2f} {row['gb_s']:7.1f} "
            f"{row['gop_s']:8.1f} {row['share_of_limit']:6.0%}  {row['bound']}"
        )
    return "\n".join(lines)


def chrome_events(report: dict[str, Any]) -> dict[str, Any]:
    """The step as a trace that chrome://tracing and Perfetto read; times in microseconds."""
    names = (("process_name", report["model"]), ("thread_name", f"{report['backend']}, {report['threads']} threads"))
    events: list[dict[str, Any]] = [
        {"name": kind, "ph": "M", "pid": 1, "tid": 1, "args": {"name": name}} for kind, name in names
    ]
    at = 0.0
    for op in report["ops"]:
        kept = ("layer", "instructions", "bytes", "operations", "share_of_limit", "bound")
        arguments = {name: op[name] for name in kept}
        events.append(
            {
                "name": op["name"],
                "ph": "X",
                "pid": 1,
                "tid": 1,
                "ts": round(at, 3),
                "dur": round(1e3 * op["ms"], 3),
                "args": arguments,
            }
        )
        at += 1e3 * op["ms"]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"model": report["model"], "point": report["point"]},
    }
