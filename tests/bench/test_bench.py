"""The bench: the roofline by hand, a step's cost by hand, points on a tiny model, a fresh process, the report."""

import argparse
import json

import pytest
from tests.cli.command import failure, treadle, treadle_json

from treadle.bench.first_token import cold_start
from treadle.bench.limits import probe_limits
from treadle.bench.measure import measure, open_engine, room
from treadle.bench.points import Limits, Measurement, Point, Work, add_point_arguments, choose_points
from treadle.bench.report import heading, numerics_hint, quantile, run_bench
from treadle.bench.trace import run_trace
from treadle.errors import TreadleError
from treadle.inference.cost import Operations, counting
from treadle.inference.engine import load
from treadle.inference.options import EngineOptions
from treadle.models.checkpoint import Checkpoint

LIMITS = Limits(read_gb_s=10.0, int8_gop_s=200.0, bf16_gop_s=100.0, f32_gop_s=50.0)


def test_the_slower_of_reading_and_calculating_is_the_limit():
    assert Work(read_bytes=20e9, int8_operations=100e9).least_seconds(LIMITS) == pytest.approx(2.0)
    assert Work(read_bytes=1e9, int8_operations=100e9).least_seconds(LIMITS) == pytest.approx(0.5)
    assert Work(1e9, int8_operations=100e9, bf16_operations=25e9, f32_operations=25e9).least_seconds(LIMITS) == 1.25


def test_the_best_of_several_probes_is_taken_limit_by_limit():
    assert Limits.best([Limits(1.0, 5.0, 3.0, 1.0), Limits(2.0, 4.0, 2.0, 1.0)]) == Limits(2.0, 5.0, 3.0, 1.0)


def test_share_and_rate_of_a_measurement():
    point = Point("decode", tokens=10, batch=4, prompt=8)
    found = Measurement(point, tokens=40, steps=(1.0, 3.0), work=Work(read_bytes=20e9, int8_operations=0))
    assert found.tok_s == 10.0
    assert found.share_of_limit(LIMITS) == pytest.approx(0.5)


def test_points_are_chosen_by_kind_length_depth_and_batch():
    found = choose_points(("prefill", "decode", "batch"), (512, 64), (128,), (8, 32))
    assert [(p.name, p.tokens, p.batch, p.prompt) for p in found] == [
        ("prefill", 512, 1, 0),
        ("prefill", 64, 1, 0),
        ("decode", 128, 1, 128),
        ("decode", 64, 8, 128),
        ("decode", 32, 32, 128),
    ]
    assert [p.name for p in choose_points(("load", "prefill"))] == ["prefill"] * 3
    assert choose_points(("load",)) == ()


def test_a_point_asked_for_twice_is_measured_once():
    assert choose_points(("decode", "batch"), depths=(128,), batches=(1, 2)) == (
        Point("decode", 128, 1, 128),
        Point("decode", 128, 2, 128),
    )


def test_the_usual_points_hold_those_that_the_peers_are_measured_at():
    assert set(choose_points(("prefill", "decode", "batch"), (512,), (128,), (8, 32))) <= set(choose_points())


def test_room_is_for_the_largest_of_each():
    """By hand: the first of 4 prompts of 128 is one step ahead of the last of them, a prompt of 600 takes two steps."""
    points = [Point("prefill", 600, 1, 0), Point("decode", 32, 4, 128)]
    assert [point.lead for point in points] == [2, 2]
    assert room(points) == {"max_batch": 4, "max_length": 602, "tokens": 4 * (160 + 2)}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("--points=prefill,other", "'other' is not one of"), ("--lengths=8,x", "not a list"), ("--depths=0", "from 1 to")],
)
def test_points_that_make_no_sense_are_refused(given, wanted, capsys):
    parser = argparse.ArgumentParser()
    add_point_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([given])
    assert wanted in capsys.readouterr().err


def test_quantiles_are_nearest_ranks():
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.95) == 4.0
    assert quantile([float(i) for i in range(1, 101)], 0.95) == 95.0
    assert quantile([7.0], 0.5) == 7.0


def test_the_cost_of_a_step_by_hand(tiny_gguf):
    """tiny llama: hidden 64, MLP 96, 3 layers, 4 heads and 2 kv heads of 16, vocabulary 320, untied; f16 keys."""
    model = str(tiny_gguf("llama", "F32"))
    cost = load(model, EngineOptions(max_num_seqs=2)).cost
    layer = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64
    assert cost.row == Operations(int8=0, bf16=0, f32=2 * 3 * layer)
    assert cost.sampled_row == Operations(int8=0, bf16=0, f32=2 * 320 * 64)
    assert cost.state_bytes_per_token == 3 * 2 * 2 * 16 * 2
    norms_and_rope = (7 * 64 + 8) * 4
    matrices = 4 * (3 * layer + 320 * 64)  # the embedding table is looked up, not read
    assert matrices + norms_and_rope <= cost.weight_bytes <= 1.02 * (matrices + norms_and_rope)


def test_of_experts_a_step_costs_those_that_a_row_chooses():
    """tiny qwen3_moe: hidden 256, 2 of 8 experts of 256, 2 layers, 4 heads and 2 kv heads of 64, tied."""
    cost = load("synthetic:qwen3_moe:tiny:q8_0", EngineOptions(max_num_seqs=2)).cost
    attention, experts, router = 2 * 256 * 256 + 2 * 128 * 256, 2 * 3 * 256 * 256, 8 * 256
    assert cost.row == Operations(int8=2 * 2 * (attention + experts), bf16=0, f32=2 * 2 * router)
    read = (2 * (attention + experts) + 512 * 256) * 34 / 32 + 2 * 4 * router
    assert read < cost.weight_bytes < 1.05 * read


def test_quantised_weights_are_multiplied_in_int8_only_in_fast_numerics(tiny_gguf):
    model = str(tiny_gguf("llama", "Q8_0"))
    fast = load(model, EngineOptions(max_num_seqs=2)).cost
    exact = load(model, EngineOptions(max_num_seqs=2, numerics="exact")).cost
    assert fast.row.f32 == fast.row.bf16 == 0
    assert exact.row == Operations(int8=0, bf16=0, f32=fast.row.int8)
    assert exact.sampled_row == Operations(int8=0, bf16=0, f32=fast.sampled_row.int8)
    bf16 = load(model, EngineOptions(max_num_seqs=2, numerics="bf16")).cost
    assert bf16.row == Operations(int8=0, bf16=fast.row.int8, f32=0)


@pytest.mark.parametrize(
    ("isa", "numerics", "hint"),
    [("amx", "fast", "numerics bf16 is faster"), ("avx2", "bf16", "numerics fast is faster"), ("amx", "bf16", "")],
)
def test_the_report_says_which_numerics_are_faster(isa, numerics, hint):
    found = numerics_hint({"isa": isa, "numerics": numerics})
    assert hint in found[0] if hint else found == []


@pytest.fixture(scope="module")
def roomy(tiny_checkpoint, tmp_path_factory):
    """The tiny llama with positions enough for the points."""
    source, made = tiny_checkpoint("llama"), tmp_path_factory.mktemp("roomy")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (made / name).write_bytes((source / name).read_bytes())
    config = json.loads((source / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    return made


def test_a_point_counts_its_own_steps_only(roomy):
    engine = open_engine(str(roomy), threads=1, numerics="fast", max_batch=3, max_length=512)
    before = engine.core.stats.decode_steps, engine.core.stats.prefill_tokens
    found = measure(engine, Point("decode", tokens=5, batch=3, prompt=200))
    assert found.tokens == 15
    assert engine.core.stats.prefill_tokens - before[1] >= 600
    assert engine.core.stats.decode_steps - before[0] >= 5
    assert found.work.int8_operations == 0
    assert found.work.f32_operations == 15 * (engine.cost.row.f32 + engine.cost.sampled_row.f32)
    assert len(found.steps) == 5
    seen = 3 * (200 + 2.5) * engine.cost.state_bytes_per_token
    assert found.work.read_bytes == 5 * (engine.cost.weight_bytes + seen)
    assert not engine.core.unfinished
    assert found.seconds > 0


def test_prefill_reads_the_weights_once_a_chunk(roomy):
    engine = open_engine(str(roomy), threads=1, numerics="fast", max_batch=3, max_length=512)
    found = measure(engine, Point("prefill", tokens=512, batch=1, prompt=0))
    assert found.tokens == 512
    assert found.work.read_bytes == engine.cost.weight_bytes
    assert found.work.f32_operations == 512 * engine.cost.row.f32 + engine.cost.sampled_row.f32


def test_probes_find_a_machine():
    found = probe_limits(1, 1 << 26)
    assert 0.1 < found.read_gb_s < 1000
    assert 1 < found.int8_gop_s < 100000
    assert 1 < found.bf16_gop_s < 100000
    assert 1 < found.f32_gop_s < 10000


def test_a_fresh_process_gives_its_times_and_memory(roomy):
    found = cold_start(str(roomy), {"threads": 1, "numerics": "fast"})
    assert found["prompt_tokens"] == 32
    assert found["first_token_s"] > found["load_s"] + found["prefill_s"] > 0
    assert found["quoted_bytes"] > 0
    assert 1e6 < found["peak_rss_bytes"] < 2e9


def test_a_process_that_says_all_at_once_is_heard(tmp_path, monkeypatch):
    """Its facts may lie in the pipe as soon as its token does."""
    worker = tmp_path / "worker"
    worker.write_text("#!/bin/sh\nprintf '\\n{\"load_s\": 0.25}\\n'\n")
    worker.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(worker))
    assert cold_start("model", {})["load_s"] == 0.25


def test_a_fresh_process_that_fails_says_why(tmp_path):
    with pytest.raises(TreadleError, match="nothing-here"):
        cold_start(str(tmp_path / "nothing-here"), {"threads": 1, "numerics": "fast"})


def test_bench_json(roomy):
    options = ("--threads", 2, "--repeat", 1, "--lengths", "16,2048", "--depths", 32, "--batches", "3")
    report = treadle_json("bench", roomy, *options)
    assert [(p["name"], p["tokens"], p["batch"], p["prompt"]) for p in report["points"]] == [
        ("prefill", 16, 1, 0),
        ("decode", 128, 1, 32),
        ("decode", 128, 3, 128),
    ]
    for point in report["points"]:
        assert point["tok_s"] > 0
        assert point["share_of_limit"] > 0
        assert 0 < point["p50_ms"] <= point["p95_ms"]
    assert report["left_out"] == ["prefill 2048"]
    assert set(report["limits"]) == {"read_gb_s", "int8_gop_s", "bf16_gop_s", "f32_gop_s"}
    assert report["threads"] == 2
    assert report["per_slot_fallbacks"] == 0
    assert report["load"]["first_token_s"] > report["load"]["load_s"] > 0
    assert report["load"]["first_token_all_s"] == [report["load"]["first_token_s"]]
    assert report["weights"]["read_bytes_per_step"] <= report["weights"]["packed_bytes"]
    assert report["memory"]["peak_rss_bytes"] > 0


def test_the_table_names_every_point_and_what_was_left_out(roomy):
    shown = treadle("bench", roomy, "--repeat", 1, "--points", "prefill,load", "--lengths", "16,2048").stdout
    assert "prefill 16 " in shown
    assert "left out, longer than the model's positions: prefill 2048" in shown
    assert "fresh process: first token after" in shown


def test_fallbacks_are_counted_where_there_are_some(tiny_gguf):
    """The reference backend takes attention slot by slot; bench counts what the engine reports."""
    options = EngineOptions(backend="reference", max_num_seqs=2, allow_per_slot=True)
    engine = load(str(tiny_gguf("llama", "F32")), options)
    with counting(engine.core) as counters:
        measure(engine, Point("decode", tokens=2, batch=2, prompt=4))
    assert counters.per_slot_fallbacks == 3 * 3  # layers, and one prefill step before two of decode
    assert engine.core.counters is None


def test_bf16_weights_are_counted_as_such():
    cost = load("synthetic:llama:tiny:bf16", EngineOptions(max_num_seqs=2)).cost
    assert cost.row.bf16 == 2 * 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256)
    assert cost.sampled_row == Operations(int8=0, bf16=2 * 512 * 256, f32=0)


def test_a_context_too_short_for_any_point_is_refused(tiny_checkpoint):
    assert "positions" in failure("bench", tiny_checkpoint("llama"), "--points", "prefill", "--lengths", "4000")


def test_a_synthetic_model_is_measured_without_a_file():
    report = treadle_json(
        "bench", "--synthetic", "llama:tiny:q8_0", "--repeat", 1, "--lengths", 8, "--points", "prefill,load"
    )
    assert report["model"] == "synthetic:llama:tiny:q8_0"
    assert [p["name"] for p in report["points"]] == ["prefill"]
    assert report["load"]["first_token_s"] > 0


def test_a_float_model_is_measured_as_it_is_quantised():
    options = ("--synthetic", "llama:tiny:bf16", "--repeat", 1, "--lengths", 8, "--points", "prefill,load")
    plain, quantised = treadle_json("bench", *options), treadle_json("bench", *options, "--quantize", "q4_0")
    assert (plain["quantize"], quantised["quantize"]) == (None, "q4_0")
    assert quantised["weights"]["packed_bytes"] < 0.4 * plain["weights"]["packed_bytes"]
    assert quantised["load"]["quoted_bytes"] < plain["load"]["quoted_bytes"]
    assert "quantised to q4_0)" in heading(quantised)


def test_how_keys_and_values_are_kept_is_chosen_and_told(roomy):
    options = ("--repeat", 1, "--points", "decode,load", "--depths", 128)
    plain, narrow = treadle_json("bench", roomy, *options), treadle_json("bench", roomy, *options, "--kv-dtype", "f32")
    assert (plain["kv_dtype"], narrow["kv_dtype"]) == ("f16", "f32")
    assert narrow["load"]["quoted_bytes"] > plain["load"]["quoted_bytes"]
    assert "fast, keys and values f32)" in heading(narrow)


def test_sequences_that_are_far_ahead_of_others_do_not_end_before_them():
    """64 prompts of 128 take 19 steps, with each of which the first sequence gets a token."""
    model, point = "synthetic:llama:tiny:q8_0", Point("decode", 2, 64, 128)
    engine = open_engine(model, threads=2, numerics="fast", **room([point]))
    assert measure(engine, point).tokens == 128
    traced = run_trace(model, point, EngineOptions(threads=2), repeat=2, say=len)
    assert traced["steps"] == 2


def test_of_what_keeps_no_keys_none_is_told():
    options = EngineOptions(threads=1)
    report = run_bench(
        "synthetic:mamba2:tiny:q8_0", (Point("prefill", 8, 1, 0),), options, load=False, repeat=1, say=len
    )
    assert report["kv_dtype"] is None
    assert "keys" not in heading(report)


def test_a_plan_is_compiled_once(roomy, tmp_path, monkeypatch):
    """The sizes are chosen once the plan is there, of a model that generates and of an encoder."""
    from tests import encoders

    compiled = []
    compile_plans = Checkpoint.compile
    monkeypatch.setattr(Checkpoint, "compile", lambda *args: compiled.append(args) or compile_plans(*args))
    options = EngineOptions(threads=1, numerics="exact")
    for model in (str(roomy), str(encoders.save("bert", tmp_path))):
        prefill = Point("prefill", 8, 1, 0)
        run_bench(model, (prefill,), options, load=False, repeat=1, say=len)
        run_trace(model, prefill, options, repeat=1, say=len)
    assert len(compiled) == 4


def test_a_synthetic_model_is_written_to_a_file_that_is_measured_alike(tmp_path):
    path = tmp_path / "tiny.gguf"
    written = treadle("bench", "--synthetic", "llama:tiny:q8_0", "--write", path)
    assert written.returncode == 0
    assert str(path) in written.stdout
    report = treadle_json("bench", path, "--repeat", 1, "--lengths", 8, "--points", "prefill")
    assert report["model"] == "tiny"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((), "either a model or --synthetic"),
        (("smollm2", "--synthetic", "llama:tiny:q8_0"), "either a model or --synthetic"),
        (("smollm2", "--write", "some.gguf"), "--write goes with --synthetic"),
        (
            ("--synthetic", "llama:tiny:bf16", "--write", "some.gguf", "--quantize", "q4_0"),
            "--write takes no --quantize",
        ),
        (("--synthetic", "llama:tiny:q4"), "type 'q4' is not known"),
    ],
)
def test_what_is_measured_must_be_clear(given, wanted):
    assert wanted in failure("bench", *given)
