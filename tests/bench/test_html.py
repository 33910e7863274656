"""The HTML report: well formed, self-contained, every figure in it, and curves whose points stand where they should."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from tests.cli.command import treadle

from treadle.bench.html import LEFT, WIDTH, Series, curves, nice_top, page, plot

RIGHT_EDGE = WIDTH - 16


def point(name, tokens, batch, prompt, tok_s):
    return {
        "name": name, "tokens": tokens, "batch": batch, "prompt": prompt, "tok_s": tok_s, "best_tok_s": tok_s + 1,
        "share_of_limit": 0.5, "p50_ms": 1.25, "p95_ms": 2.5,
    }  # fmt: skip


POINTS = [
    point("prefill", 512, 1, 0, 2000.0),
    point("prefill", 128, 1, 0, 1500.0),
    point("decode", 128, 1, 128, 300.0),
    point("decode", 64, 8, 128, 1000.0),
]
REPORT = {
    "model": "<some & model>", "backend": "cpu", "isa": "plain", "threads": 2, "numerics": "fast",
    "kv_dtype": "q8_0", "quantize": None, "points": POINTS, "left_out": ["prefill 9999"],
    "limits": {"read_gb_s": 1.0, "int8_gop_s": 2.0, "bf16_gop_s": 2.5, "f32_gop_s": 3.0}, "load": None,
    "weights": {"packed_bytes": 1e6, "read_bytes_per_step": 1e6},
    "memory": {"quoted_bytes": 1e6, "peak_rss_bytes": 2e6}, "per_slot_fallbacks": 0, "fallback": "no <swiglu>",
    "counted": {"dispatches": 62.0, "launches": 1.0, "planned_bytes": 1e6},
}  # fmt: skip


def test_curves_are_those_of_which_there_are_two_points_or_more():
    assert [(c.title, c.y_name, c.xs, c.ys) for c in curves(POINTS)] == [
        ("prefill", "tokens/s", [128, 512], [1500.0, 2000.0]),
        ("prefill", "% of the limit", [128, 512], [50.0, 50.0]),
        ("decode together", "tokens/s", [1, 8], [300.0, 1000.0]),
        ("decode together", "% of the limit", [1, 8], [50.0, 50.0]),
    ]


def test_a_curve_spans_the_plot_on_a_scale_of_doublings():
    drawn = plot(Series("t", "x", "y", [1, 2, 4], [0.0, 5.0, 10.0]))
    spots = re.search('points="([^"]*)"', drawn)[1].split()
    xs = [float(spot.split(",")[0]) for spot in spots]
    ys = [float(spot.split(",")[1]) for spot in spots]
    assert xs == pytest.approx([LEFT, (LEFT + RIGHT_EDGE) / 2, RIGHT_EDGE])
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11)
    assert ys[0] > ys[2]


def test_the_top_of_a_scale_is_a_round_number_above_all_values():
    assert [nice_top(value) for value in (0.0, 1.0, 3.0, 9.5, 1001.0)] == [1.0, 1.0, 4.0, 10.0, 2000.0]


def test_the_page_is_well_formed_holds_every_figure_and_asks_for_nothing_else():
    text = page(REPORT)
    tree = ElementTree.fromstring(text.replace("<!DOCTYPE html>", "").replace('<meta charset="utf-8">', ""))
    assert len(list(tree.iter("svg"))) == 4
    rows = [[cell.text for cell in row] for row in tree.iter("tr")]
    assert len(rows) == 1 + len(POINTS)
    assert rows[1] == ["prefill 512", "2000.0", "2001.0", "50%", "1.25 ms", "2.50 ms"]
    assert "&lt;some &amp; model&gt; on cpu" in text
    assert "left out, longer than the model's positions: prefill 9999" in "".join(tree.itertext())
    assert not re.search(r"(src|href)=|url\(|@import", text)


def test_the_command_writes_it(tmp_path):
    path = tmp_path / "report.html"
    options = ("--repeat", 1, "--points", "prefill", "--lengths", "8,16", "--html", path)
    assert treadle("bench", "--synthetic", "llama:tiny:q8_0", *options).returncode == 0
    assert path.read_text().count("<svg") == 2
