"""The bench: the roofline by hand, a step's cost by hand, the points on a tiny model, and the report's shape."""

import json

import pytest
from tests.cli.command import failure, treadle_json

from treadle.bench.limits import probe_limits
from treadle.bench.measure import measure, open_engine
from treadle.bench.points import POINTS, Limits, Measurement, Point, Work
from treadle.inference.cost import counting
from treadle.inference.engine import EngineOptions, load

LIMITS = Limits(read_gb_s=10.0, int8_gop_s=200.0)


def test_the_slower_of_reading_and_calculating_is_the_limit():
    assert Work(read_bytes=20e9, operations=100e9).least_seconds(LIMITS) == pytest.approx(2.0)
    assert Work(read_bytes=1e9, operations=100e9).least_seconds(LIMITS) == pytest.approx(0.5)


def test_share_and_rate_of_a_measurement():
    point = Point("decode", tokens=10, batch=4, prompt=8)
    found = Measurement(point, tokens=40, seconds=4.0, work=Work(read_bytes=20e9, operations=0))
    assert found.tok_s == 10.0
    assert found.share_of_limit(LIMITS) == pytest.approx(0.5)


def test_the_points_are_those_that_the_peers_are_measured_at():
    assert [(p.name, p.tokens, p.batch, p.prompt) for p in POINTS] == [
        ("prefill", 512, 1, 0),
        ("decode", 128, 1, 128),
        ("decode", 64, 8, 128),
        ("decode", 32, 32, 128),
    ]


def test_the_cost_of_a_step_by_hand(tiny_gguf):
    """tiny llama: hidden 64, MLP 96, 3 layers, 4 heads and 2 kv heads of 16, vocabulary 320, untied; f16 keys."""
    cost = load(str(tiny_gguf("llama", "F32")), EngineOptions(max_num_seqs=2)).cost
    layer = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64
    assert cost.operations_per_row == 2 * 3 * layer
    assert cost.operations_per_sampled_row == 2 * 320 * 64
    assert cost.state_bytes_per_token == 3 * 2 * 2 * 16 * 2
    norms_and_rope = (7 * 64 + 8) * 4
    matrices = 4 * (3 * layer + 320 * 64)  # the embedding table is looked up, not read
    assert matrices + norms_and_rope <= cost.weight_bytes <= 1.02 * (matrices + norms_and_rope)


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
    engine = open_engine(str(roomy), threads=1, numerics="fast")
    before = engine.core.stats.decode_steps, engine.core.stats.prefill_tokens
    found = measure(engine, Point("decode", tokens=5, batch=3, prompt=200))
    assert found.tokens == 15
    assert engine.core.stats.prefill_tokens - before[1] >= 600
    assert engine.core.stats.decode_steps - before[0] >= 5
    assert found.work.operations == 15 * (engine.cost.operations_per_row + engine.cost.operations_per_sampled_row)
    seen = 3 * (200 + 2.5) * engine.cost.state_bytes_per_token
    assert found.work.read_bytes == 5 * (engine.cost.weight_bytes + seen)
    assert not engine.core.unfinished
    assert found.seconds > 0


def test_prefill_reads_the_weights_once_a_chunk(roomy):
    engine = open_engine(str(roomy), threads=1, numerics="fast")
    found = measure(engine, Point("prefill", tokens=512, batch=1, prompt=0))
    assert found.tokens == 512
    assert found.work.read_bytes == engine.cost.weight_bytes
    assert found.work.operations == 512 * engine.cost.operations_per_row + engine.cost.operations_per_sampled_row


def test_probes_find_a_machine():
    found = probe_limits(1)
    assert 0.1 < found.read_gb_s < 1000
    assert 1 < found.int8_gop_s < 10000


def test_bench_json(roomy):
    report = treadle_json("bench", roomy, "--threads", 2, "--repeat", 1)
    assert [(p["name"], p["tokens"], p["batch"]) for p in report["points"]] == [
        ("prefill", 512, 1),
        ("decode", 128, 1),
        ("decode", 64, 8),
        ("decode", 32, 32),
    ]
    assert all(p["tok_s"] > 0 and p["share_of_limit"] > 0 for p in report["points"])
    assert set(report["limits"]) == {"read_gb_s", "int8_gop_s"}
    assert report["threads"] == 2
    assert report["per_slot_fallbacks"] == 0


def test_fallbacks_are_counted_where_there_are_some(tiny_gguf):
    """The reference backend takes attention slot by slot; bench counts what the engine reports."""
    options = EngineOptions(backend="reference", max_num_seqs=2, allow_per_slot=True)
    engine = load(str(tiny_gguf("llama", "F32")), options)
    with counting(engine.core) as counters:
        measure(engine, Point("decode", tokens=2, batch=2, prompt=4))
    assert counters.per_slot_fallbacks == 3 * 3  # layers, and one prefill step before two of decode
    assert engine.core.counters is None


def test_a_context_too_short_for_the_points_is_refused(tiny_checkpoint):
    assert "positions" in failure("bench", tiny_checkpoint("llama"))
