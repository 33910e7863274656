"""A trace as one HTML page that needs nothing else: the table, and the step's ops under the machine's roofline."""

import math
from html import escape
from pathlib import Path
from typing import Any

from treadle.bench.html import STYLE
from treadle.bench.report import settings

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 860, 420, 64, 44, 24, 60
"""Of the plot, in pixels."""
PLOT_STYLE = ".rule{stroke:#ddd}.roof{fill:none;stroke:#999}"
LABEL = 14
"""Height of a line of text."""
COLOURS = {
    "attention": "#3b7dd8", "swiglu": "#2f9e6e", "moe": "#8a5cd1", "mixer": "#d07a1f", "head": "#c2415b",
    "embedding": "#5b6b8c",
}  # fmt: skip
"""Of an op, by a part of its name."""
MINOR = {"rmsnorm", "layernorm", "residual_add"}
"""What an op does beside what it is called after."""


def write_page(report: dict[str, Any], path: Path) -> None:
    """Raises OSError where the file cannot be written."""
    path.write_text(page(report), encoding="utf-8")


def page(report: dict[str, Any]) -> str:
    """The whole document."""
    title = escape(f"{report['model']}: {report['point']}, {report['step_ms']:.3f} ms a step")
    how = escape(f"{report['backend']}, {settings(report)}")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{PLOT_STYLE}{STYLE}</style></head><body><h1>{title}</h1><p class='note'>{how}; "
        f"medians of {report['steps']} steps. An op at the sloping line is bound by reading, one at a level line by "
        f"calculating; the area of a spot is its time.</p>"
        f"<figure>{roofline(report)}</figure>{_table(report)}</body></html>\n"
    )


def roofline(report: dict[str, Any]) -> str:
    """Rate over operations per byte, both on logarithmic scales, with the probed limits (Williams et al. 2009)."""
    limits = report["limits"]
    spots = [group for group in report["groups"] if group["operations"] and group["bytes"] and group["gop_s"]]
    intensities = [group["operations"] / group["bytes"] for group in spots] or [1.0]
    roofs = {name: limits[f"{name}_gop_s"] for name in ("int8", "bf16", "f32") if limits[f"{name}_gop_s"] > 0}
    x_low, x_high = _decades([*intensities, 1.0, max(roofs.values()) / limits["read_gb_s"]])
    y_low, y_high = _decades([*(group["gop_s"] for group in spots), *roofs.values()])

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        clipped = min(max(math.log10(value), y_low), y_high)
        return HEIGHT - BOTTOM - (clipped - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="roofline">']
    for power in range(x_low, x_high + 1):
        parts.append(f'<text x="{x(10**power):.0f}" y="{HEIGHT - 24}" text-anchor="middle">{10.0**power:g}</text>')
    for power in range(y_low, y_high + 1):
        at = y(10**power)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="rule"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    begin = max(10.0**x_low, 10.0**y_low / limits["read_gb_s"])
    named: list[tuple[float, float]] = []
    for name, roof in sorted(roofs.items(), key=lambda item: -item[1]):
        corner = roof / limits["read_gb_s"]
        points = " ".join(
            f"{x(i):.1f},{y(r):.1f}" for i, r in ((corner, roof), (10.0**x_high, roof)) if i <= 10.0**x_high
        )
        parts.append(f'<polyline class="roof" points="{points}"/>')
        at = _free(WIDTH, y(roof) + 4, named)
        parts.append(f'<text x="{WIDTH - RIGHT + 4}" y="{at:.1f}">{name}</text>')
    end = max(roofs.values()) / limits["read_gb_s"]
    slope = f"{x(begin):.1f},{y(begin * limits['read_gb_s']):.1f} {x(end):.1f},{y(end * limits['read_gb_s']):.1f}"
    parts.append(f'<polyline class="roof" points="{slope}"/>')
    taken: list[tuple[float, float]] = []
    for group, intensity in sorted(zip(spots, intensities, strict=True), key=lambda spot: -float(spot[0]["gop_s"])):
        across, down = x(intensity), y(group["gop_s"])
        radius = 3 + 18 * math.sqrt(group["ms"] / report["step_ms"])
        told = f"{group['name']} x{group['count']}: {group['ms']:.4f} ms, {group['share_of_limit']:.0%} of the limit"
        parts.append(
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{radius:.1f}" fill="{_colour(group["name"])}" '
            f'fill-opacity=".6"><title>{escape(told)}</title></circle>'
        )
        at = _free(across, down + 4, taken)
        left = across > WIDTH / 2
        beside, anchor = (across - radius - 4, "end") if left else (across + radius + 4, "start")
        parts.append(f'<text x="{beside:.1f}" y="{at:.1f}" text-anchor="{anchor}">{escape(_label(group))}</text>')
    parts.append(f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">operations a byte</text>')
    parts.append(f'<text x="{LEFT}" y="14">GOP/s</text></svg>')
    return "".join(parts)


def _label(group: dict[str, Any]) -> str:
    parts = [part for part in group["name"].split(" + ") if part not in MINOR] or [group["name"]]
    return f"{' + '.join(parts)} x{group['count']}, {group['share_of_limit']:.0%} of the limit"


def _colour(name: str) -> str:
    return next((colour for part, colour in COLOURS.items() if part in name), "#7b8494")


def _free(across: float, down: float, taken: list[tuple[float, float]]) -> float:
    """Where a label fits that would like to be at a height: below those that begin near it."""
    for other_across, other_down in sorted(taken, key=lambda place: place[1]):
        if abs(other_across - across) < WIDTH / 3 and abs(other_down - down) < LABEL:
            down = other_down + LABEL
    taken.append((across, down))
    return down


def _decades(values: list[float]) -> tuple[int, int]:
    """Powers of ten around the values, at least one apart."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _table(report: dict[str, Any]) -> str:
    head = ("op", "", "ms", "of the step", "MB", "GB/s", "GOP/s", "of the limit", "bound by")
    rows = [
        (
            group["name"],
            f"x{group['count']}",
            f"{group['ms']:.4f}",
            f"{group['ms'] / report['step_ms']:.1%}",
            f"{group['bytes'] / 1e6:.2f}",
            f"{group['gb_s']:.1f}",
            f"{group['gop_s']:.1f}",
            f"{group['share_of_limit']:.0%}",
            group["bound"],
        )
        for group in report["groups"]
    ]
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{cells}</table>"
