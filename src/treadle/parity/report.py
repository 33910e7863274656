"""Reports of parity runs: lines of text, JSON, and one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import jinja2
import msgspec

from treadle.parity.run import CaseReport

PAGE: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>treadle parity: {{ summary }}</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}
td:nth-child(-n+5),th:nth-child(-n+5),td:last-child,th:last-child{text-align:left}
.failed{background:#fdd}.note{color:#666}</style></head><body>
<h1>treadle parity: {{ summary }}</h1>
<p class="note">Logits against transformers (torch, f32, eager attention) on the same seeded weights: whole prompts, in
chunks, token by token, and in ragged batches. rel. error: largest difference / largest logit. noise: RMS of the
difference / RMS of the logits. top-1: of the positions that the oracle decides by more than rounding costs, and of all
positions. bits: whether all ways of feeding gave the same bits.</p>
<table><tr><th>family</th><th>case</th><th>backend</th><th>numerics</th><th>weights</th>
<th>rel. error</th><th>noise</th><th>top-1</th><th>of all</th><th>bits</th><th>positions</th><th>status</th></tr>
{% for r in reports %}<tr class="{{ r.status }}"><td>{{ r.family }}</td><td>{{ r.case }}</td><td>{{ r.backend }}</td>
<td>{{ r.numerics }}</td><td>{{ r.weights }}</td>
<td>{{ figure(r.rel_err, ".1e") }}</td><td>{{ figure(r.noise, ".1e") }}</td>
<td>{{ figure(r.top1, ".2%") }}</td><td>{{ figure(r.top1_all, ".2%") }}</td>
<td>{{ "" if r.bitwise is none else "same" if r.bitwise else "differ" }}</td><td>{{ r.positions }}</td>
<td>{{ r.status }}{% if r.message %}: {{ r.message }}{% endif %}
{% if r.diverges %}<br>{{ r.diverges }}{% endif %}</td></tr>
{% endfor %}</table></body></html>
"""


def figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def line(report: CaseReport) -> str:
    """One report as one line."""
    name = f"{report.family}/{report.case}"
    setting = f"{report.backend} {report.numerics} {report.weights}"
    figures = f"rel. error {figure(report.rel_err, '.1e'):7}  top-1 {figure(report.top1, '.2%'):7}"
    if report.numerics != "exact":
        figures += f" (of all {figure(report.top1_all, '.2%') or '-'}, noise {figure(report.noise, '.1e')})"
    said = "; ".join(text for text in (report.message, report.diverges) if text)
    return f"{report.status:6}  {name:32} {setting:20} {figures}  {said}".rstrip()


def trace_lines(report: CaseReport) -> list[str]:
    """Every instruction that was compared."""
    return [f"{point.rel_err:12.1e}  {point.index:4} {point.op:20} {point.at}" for point in report.trace]


def totals(reports: Sequence[CaseReport]) -> dict[str, Any]:
    """What --json prints."""
    passed = sum(report.status == "passed" for report in reports)
    cases = [msgspec.to_builtins(report) for report in reports]
    return {"passed": passed, "failed": len(reports) - passed, "cases": cases}


def summary(reports: Sequence[CaseReport]) -> str:
    found = totals(reports)
    return f"{found['passed']} passed, {found['failed']} failed"


def page(reports: Sequence[CaseReport]) -> str:
    """The whole HTML document."""
    template = jinja2.Environment(autoescape=True).from_string(PAGE)
    return template.render(reports=reports, summary=summary(reports), figure=figure)
