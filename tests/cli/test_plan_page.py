"""The page of a plan: whole, without anything from outside, and safe whatever a model's names are."""

import json
import re

import pytest
from tests import encoders

from treadle.cli.main import main
from treadle.cli.plan_page import embedded, page
from treadle.inference.engine import describe
from treadle.inference.options import EngineOptions


@pytest.fixture(scope="module")
def description(tiny_checkpoint):
    return describe(tiny_checkpoint("llama-bias"), EngineOptions(max_num_seqs=2, max_model_len=128))


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def test_the_page_holds_the_plan_and_needs_nothing_else(description):
    html = page(description)
    data = data_of(html)
    assert data["plan"] == description.plan_dict
    assert data["placement"]["memory"]["total_bytes"] == description.memory_quote.total_bytes
    assert not re.search(
        r"""(src|href)=|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", html.replace(json.dumps(data), "")
    )


def test_what_a_token_reads_adds_up(description):
    """Every packed weight is read once by a token, but for the embedding table, of which one row is."""
    place = description.placement["stages"][-1]
    weights = {
        w["name"]: found["bytes"]
        for w, found in zip(description.plan_dict["stages"][-1]["weights"], place["weights"], strict=True)
    }
    read = sum(reads["weights"] for reads in place["reads"])
    shared = 2 * weights["rope.inv_freq"]  # three layers read it
    assert read == sum(weights.values()) + shared - weights["embedding.table"] + weights["embedding.table"] // 320
    assert sum(reads["state_per_token"] for reads in place["reads"]) == description.memory_quote.state_bytes_per_token
    assert sum(weights.values()) == description.memory_quote.weights_bytes


def test_buffers_are_those_of_the_quote(description):
    for stage, place in zip(description.plan_dict["stages"], description.placement["stages"], strict=True):
        assert len(place["buffer_of"]) == len(stage["registers"])
        assert len(place["buffer_bytes"]) == stage["peak_registers"]
        assert sum(place["buffer_bytes"]) == description.memory_quote.registers_bytes


def test_every_instruction_is_in_its_layer(description, tmp_path):
    """So that what runs in layer 7 can be asked for; what is in front of the layers and behind them is in none."""
    stage, place = description.plan_dict["stages"][-1], description.placement["stages"][-1]
    named = {}
    for instruction, layer in zip(stage["instructions"], place["layers"], strict=True):
        named.setdefault(layer, []).append(instruction["opcode"])
        numbered = [name for name in instruction["weights"].values() if name.startswith("layers.")]
        assert all(name.startswith(f"layers.{layer}.") for name in numbered)
    assert named[-1] == ["embedding", "rmsnorm", "lm_head"]
    assert named[2] == ["rmsnorm", "multihead_attention", "residual_add", "rmsnorm", "swiglu", "residual_add"]


def test_an_encoder_pools_behind_its_layers(tmp_path):
    found = describe(encoders.save("bert", tmp_path), EngineOptions())
    ops = [i["opcode"] for i in found.plan_dict["stages"][0]["instructions"]]
    layers = found.placement["stages"][0]["layers"]
    assert (ops[-1], layers[-1]) == ("pool", -1)
    assert layers[2:-1] == [layer for layer in range(3) for _ in range(6)]


def test_rows_of_small_tables_are_read_without_what_pads_them(tmp_path):
    """One row of words, one of positions and one of the two types: as f32, though strips of 16 rows are stored."""
    found = describe(encoders.save("bert", tmp_path), EngineOptions())
    stage, place = found.plan_dict["stages"][0], found.placement["stages"][0]
    shapes = {weight["name"]: weight["shape"] for weight in stage["weights"]}
    tables = [shapes[name] for name in stage["instructions"][0]["weights"].values()]
    assert [2, tables[0][1]] in tables
    assert place["reads"][0]["weights"] == sum(4 * cols for _, cols in tables)


def test_the_plan_says_what_runs_slot_by_slot(tiny_checkpoint, capsys):
    path = str(tiny_checkpoint("llama-bias"))
    for backend, loops in (("cpu", {}), ("reference", {"multihead_attention": 3})):
        asked = ["plan", path, "--backend", backend, *(["--allow-per-slot"] if loops else [])]
        assert main([*asked, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["per_slot"] == loops
        assert main(asked) == 0
        told = "3 multihead_attention" if loops else "no instruction"
        assert capsys.readouterr().err.strip().endswith(f"; slot by slot: {told}")
        description = describe(path, EngineOptions(backend=backend, allow_per_slot=bool(loops)))
        stage, place = description.plan_dict["stages"][-1], description.placement["stages"][-1]
        assert [stage["instructions"][i]["opcode"] for i in place["per_slot"]] == 3 * list(loops)


def test_names_cannot_leave_the_script_element():
    text = embedded({"name": "</script><script>alert(1)</script>"})
    assert "<" not in text
    assert json.loads(text)["name"].startswith("</script>")


def test_the_command_writes_it(tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "plan.html"
    assert main(["plan", str(tiny_checkpoint("llama")), "--html", str(out)]) == 0
    assert str(out) in capsys.readouterr().err
    assert data_of(out.read_text())["plan"]["facts"]["model_type"] == "llama"
