"""A bench report as one HTML file that needs nothing else: the table, and plots as inline SVG."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from treadle.bench.points import BATCH_PROMPT
from treadle.bench.report import counted_line, heading, label, limits_line, memory_line, start_line

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 44
"""Margins of a plot, in pixels."""
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:980px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .9em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left;padding-left:0}figure{display:inline-block;margin:0 1em 1em 0}
svg text{font:12px system-ui,sans-serif;fill:#444}.note{color:#666}
@media (prefers-color-scheme:dark){body{color:#e6e9ef;background:#15181e}svg text{fill:#c3c9d4}.note{color:#98a2b3}
td,th{border-color:#363c48}.rule,svg line{stroke:#363c48}}"""


class Series(NamedTuple):
    """Points of a plot: ``xs`` positive, on a scale of doublings; ``ys`` from 0."""

    title: str
    x_name: str
    y_name: str
    xs: Sequence[float]
    ys: Sequence[float]


def page(report: dict[str, Any]) -> str:
    """The whole document."""
    notes = [limits_line(report), *([start_line(report)] if report["load"] else []), memory_line(report)]
    notes.append(counted_line(report))
    if report["left_out"]:
        notes.append(f"left out, longer than the model's positions: {', '.join(report['left_out'])}")
    title = escape(heading(report))
    return "\n".join(
        [
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f"<style>{STYLE}</style></head><body><h1>{title}</h1>",
            *(f'<p class="note">{escape(note)}</p>' for note in notes),
            *(f"<figure>{plot(series)}</figure>" for series in curves(report["points"])),
            _table(report["points"]),
            "</body></html>\n",
        ]
    )


def write_page(report: dict[str, Any], path: Path) -> None:
    """Raises OSError where the file cannot be written."""
    path.write_text(page(report), encoding="utf-8")


def curves(points: Sequence[dict[str, Any]]) -> list[Series]:
    """Rate and share of the limit: of prefills and of single texts over length, of single decodes over depth, of
    decodes and of short texts over batch."""
    texts = sorted((p for p in points if p["name"] == "encode"), key=lambda p: (p["tokens"], p["batch"]))
    prefill = sorted((p for p in points if p["name"] == "prefill"), key=lambda p: p["tokens"])
    decode = sorted((p for p in points if p["name"] == "decode" and p["batch"] == 1), key=lambda p: p["prompt"])
    batch = sorted(
        (p for p in points if p["name"] == "decode" and (p["batch"] > 1 or p["prompt"] == BATCH_PROMPT)),
        key=lambda p: p["batch"],
    )
    found = []
    for title, x_name, key, chosen in (
        ("prefill", "tokens of the prompt", "tokens", prefill),
        ("decode of one sequence", "tokens before it", "prompt", decode),
        ("decode together", "sequences", "batch", batch),
        ("encode one text", "tokens of the text", "tokens", [p for p in texts if p["batch"] == 1]),
        ("encode together", "short texts", "batch", [p for p in texts if p["tokens"] == BATCH_PROMPT]),
    ):
        if len({p[key] for p in chosen}) < 2:
            continue
        xs = [p[key] for p in chosen]
        found.append(Series(title, x_name, "tokens/s", xs, [p["tok_s"] for p in chosen]))
        found.append(Series(title, x_name, "% of the limit", xs, [100 * p["share_of_limit"] for p in chosen]))
    return found


def plot(series: Series) -> str:
    """One curve as an SVG element."""
    low, high = math.log2(min(series.xs)), math.log2(max(series.xs))
    top = nice_top(max(series.ys))

    def x_at(value: float) -> float:
        return LEFT + (math.log2(value) - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y_at(value: float) -> float:
        return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)

    spots = [(x_at(x), y_at(y)) for x, y in zip(series.xs, series.ys, strict=True)]
    rules = [top * i / 4 for i in range(5)]
    return "".join(
        [
            f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(series.title)}">',
            f'<text x="{LEFT}" y="18"><tspan font-weight="bold">{escape(series.title)}</tspan>, '
            f"{escape(series.y_name)}</text>",
            *(_rule(y_at(value), value) for value in rules),
            *(
                f'<text x="{x_at(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>'
                for x in series.xs
            ),
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{escape(series.x_name)}</text>",
            f'<polyline fill="none" stroke="#2463a8" stroke-width="2" '
            f'points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in spots)}"/>',
            *(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#2463a8"><title>{value:g}</title></circle>'
                for (x, y), value in zip(spots, series.ys, strict=True)
            ),
            "</svg>",
        ]
    )


def _rule(y: float, value: float) -> str:
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


def nice_top(value: float) -> float:
    """The least of 1, 2, 4, 6, 8 times a power of ten that is not below the value."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)


def _table(points: Sequence[dict[str, Any]]) -> str:
    head = ("point", "tokens/s", "best", "of the limit", "step p50", "step p95")
    rows = [
        (
            label(point),
            f"{point['tok_s']:.1f}",
            f"{point['best_tok_s']:.1f}",
            f"{point['share_of_limit']:.0%}",
            f"{point['p50_ms']:.2f} ms",
            f"{point['p95_ms']:.2f} ms",
        )
        for point in points
    ]
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{cells}</table>"
