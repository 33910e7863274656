"""Tracing a step: costs that add up, ops that cover the plan, and what is written of them."""

import json
import re
from itertools import pairwise

import pytest

from treadle.bench.points import Point
from treadle.bench.trace import chrome_events, run_trace, table
from treadle.bench.trace_html import page
from treadle.cli.main import main
from treadle.errors import InvalidRequest
from treadle.inference.engine import describe
from treadle.inference.options import EngineOptions

MODEL = "synthetic:llama:tiny:q8_0"


def traced(point, **options):
    return run_trace(MODEL, point, EngineOptions(threads=1, **options), repeat=3, say=lambda text: None)


@pytest.fixture(scope="module")
def decode():
    return traced(Point("decode", 1, 2, 16))


def test_every_instruction_is_covered_once(decode):
    plan = describe(MODEL, EngineOptions()).plan_dict["stages"][-1]["instructions"]
    covered = [i for op in decode["ops"] for i in range(op["instructions"][0], op["instructions"][1] + 1)]
    assert covered == list(range(len(plan)))
    for op in decode["ops"]:
        first, last = op["instructions"]
        assert op["name"] == " + ".join(plan[i]["opcode"] for i in range(first, last + 1))


def test_times_and_groups_add_up(decode):
    assert decode["step_ms"] == pytest.approx(sum(op["ms"] for op in decode["ops"]), rel=1e-3)
    assert all(op["ms"] > 0 for op in decode["ops"])
    for name in ("ms", "bytes", "operations"):
        assert sum(g[name] for g in decode["groups"]) == pytest.approx(sum(op[name] for op in decode["ops"]), rel=1e-3)
    assert {g["count"] for g in decode["groups"]} == {1, 2}  # two layers, one embedding, one head


def test_the_work_of_a_decode_step(decode):
    """By hand: 2 sequences with 17 keys each, kept in f16."""
    attention = next(op for op in decode["ops"] if "multihead_attention" in op["name"])
    plan = describe(MODEL, EngineOptions()).plan_dict["stages"][-1]
    params = next(i["params"] for i in plan["instructions"] if i["opcode"] == "multihead_attention")
    heads, kv_heads, width = params["num_heads"], params["num_kv_heads"], params["head_dim"]
    hidden = describe(MODEL, EngineOptions()).plans.facts.hidden_size
    projections = 2 * hidden * width * (2 * heads + 2 * kv_heads)
    keys = 2 * heads * 2 * width * 17
    assert attention["operations"] == 2 * (projections + keys)
    state = 2 * 2 * kv_heads * width  # bytes a token
    assert attention["bytes"] > 2 * 17 * state
    assert attention["bytes"] - 2 * 17 * state < 1.2 * projections  # a byte and scales for each weight


def test_how_keys_and_values_are_kept_is_chosen_and_told(decode):
    """By hand: 2 sequences with 17 keys each; q8_0 keeps 32 elements in 34 bytes."""
    q8_0 = traced(Point("decode", 1, 2, 16), kv_dtype="q8_0", quantize=None)
    assert (decode["kv_dtype"], q8_0["kv_dtype"]) == ("f16", "q8_0")
    wide, narrow = (next(op for op in r["ops"] if "multihead_attention" in op["name"]) for r in (decode, q8_0))
    elements = 2 * 17 * 2 * 2 * 64  # sequences, keys, keys and values, heads, columns of a head
    assert wide["bytes"] - narrow["bytes"] == elements * 2 - elements * 34 // 32
    for shown in (table(q8_0), page(q8_0)):
        assert "1 threads, fast, keys and values q8_0" in shown


def test_a_prefill_reads_weights_once_and_calculates_for_every_row():
    one, many = traced(Point("prefill", 8, 1, 0)), traced(Point("prefill", 64, 1, 0))
    mlp = [next(op for op in report["ops"] if "swiglu" in op["name"]) for report in (one, many)]
    assert mlp[0]["bytes"] == mlp[1]["bytes"]
    assert mlp[1]["operations"] == 8 * mlp[0]["operations"]
    head = [next(op for op in report["ops"] if "lm_head" in op["name"]) for report in (one, many)]
    assert head[0]["operations"] == head[1]["operations"]
    with pytest.raises(InvalidRequest, match="513 tokens is more than one step"):
        traced(Point("prefill", 513, 1, 0))
    with pytest.raises(InvalidRequest, match="514 tokens is more than one step"):
        traced(Point("prefill", 257, 2, 0))


def test_a_text_of_an_encoder_is_a_step(tmp_path):
    """By hand: every row sees all of its text's tokens."""
    from tests import encoders

    path = str(encoders.save("bert", tmp_path))
    exact = EngineOptions(threads=1, numerics="exact")
    report = run_trace(path, Point("prefill", 24, 2, 0), exact, repeat=2, say=lambda text: None)
    assert (report["point"], report["steps"], len(report["ops"])) == ("encode 24 x 2", 2, 2 + 6 * 3 + 1)
    attention = next(op for op in report["ops"] if "multihead_attention" in op["name"])
    assert attention["operations"] == 48 * (4 * 2 * 64 * 64 + 2 * 2 * 64 * 24)
    assert {op["layer"] for op in report["ops"]} == {-1, 0, 1, 2}
    with pytest.raises(InvalidRequest, match="encode of 600 tokens is more than one step"):
        run_trace(path, Point("prefill", 60, 10, 0), exact, repeat=2, say=len)


def test_what_is_written(decode):
    trace = json.loads(json.dumps(chrome_events(decode)))
    named, events = trace["traceEvents"][:2], trace["traceEvents"][2:]
    assert [(event["ph"], event["name"], event["args"]["name"]) for event in named] == [
        ("M", "process_name", MODEL), ("M", "thread_name", "cpu, 1 threads"),
    ]  # fmt: skip
    for event in events:  # what the format asks of a complete event
        assert event["ph"] == "X" and isinstance(event["name"], str) and isinstance(event["args"], dict)
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert event["ts"] >= 0 <= event["dur"]
    assert [event["name"] for event in events] == [op["name"] for op in decode["ops"]]
    for before, after in pairwise(events):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"], abs=2e-3)
    html = page(decode)
    assert html.count("<circle") == sum(1 for g in decode["groups"] if g["operations"])
    assert not re.search(r"(src|href)=|https?:", html)
    told = re.findall(r"<text[^>]*>([^<]*), \d+% of the limit</text>", html)
    assert sorted(told) == ["lm_head x1", "multihead_attention x2", "swiglu x2"]
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="\w+">[^<]*of the limit</text>', html)]
    assert all(abs(a - b) >= 13.9 for i, a in enumerate(heights) for b in heights[:i])
    text = table(decode, every=True)
    assert "1: rmsnorm + multihead_attention + residual_add" in text
    assert "x2" in table(decode)


def test_the_command(tmp_path, capsys):
    html, chrome = tmp_path / "a.html", tmp_path / "a.json"
    options = ["--decode", "8", "--repeat", "2", "--threads", "1", "--html", str(html), "--chrome", str(chrome)]
    assert main(["trace", MODEL, *options, "--kv-dtype", "bf16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 2 and told["point"] == "decode at 8" and told["kv_dtype"] == "bf16"
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert len(json.loads(chrome.read_text())["traceEvents"]) == 2 + len(told["ops"])
