"""A backend that cannot run a plan: refused by name, or all of it on the fallback that was asked for; and fusions."""

import json
import logging

import numpy as np
import pytest

from treadle.cli.main import main
from treadle.errors import BackendUnavailable, InvalidRequest, UnsupportedBatchSize, UnsupportedOpcode
from treadle.inference import backends
from treadle.inference.engine import describe
from treadle.inference.llm import LLM
from treadle.inference.options import EngineOptions
from treadle.plan.adapters import AdapterTable

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def no_swiglu(monkeypatch):
    """A cpu backend without an adapter for one op of every model."""
    from treadle.inference.backends.cpu import CpuBackend
    from treadle.plan.ir import Opcode

    table = CpuBackend.table
    entries = {opcode: (table.get(opcode), table.capabilities[opcode]) for opcode in table.claimed() - {Opcode.SWIGLU}}
    monkeypatch.setattr(CpuBackend, "table", AdapterTable("cpu", entries))


def test_without_a_fallback_the_refusal_says_what_would_run(no_swiglu, tiny_checkpoint):
    refusal = r"instruction 5 \(swiglu\) of f32 weights: backend cpu has no adapter for it; --fallback reference runs"
    with pytest.raises(UnsupportedOpcode, match=refusal):
        LLM(tiny_checkpoint("llama"), max_num_seqs=1)
    with pytest.raises(UnsupportedOpcode, match=refusal):
        describe(tiny_checkpoint("llama"), EngineOptions(max_num_seqs=1))


def test_the_whole_plan_runs_on_the_fallback_and_it_is_said(no_swiglu, tiny_checkpoint, caplog):
    caplog.set_level(logging.WARNING, "treadle")
    with LLM(tiny_checkpoint("llama"), max_num_seqs=1, numerics="exact", fallback="reference") as llm:
        found = llm.logits(IDS)
        assert llm.info.backend == "reference"
        assert llm.info.instead_of == "instruction 5 (swiglu) of f32 weights: backend cpu has no adapter for it"
    (told,) = [record.getMessage() for record in caplog.records if "fallback" in record.getMessage()]
    assert told.startswith("cpu cannot run this plan (instruction 5 (swiglu)") and "all of it runs on reference" in told
    with LLM(tiny_checkpoint("llama"), max_num_seqs=1, backend="reference", numerics="exact") as llm:
        np.testing.assert_array_equal(found, llm.logits(IDS))
        assert llm.info.instead_of is None


def test_the_fallbacks_own_limits_hold(no_swiglu, tiny_checkpoint):
    with pytest.raises(UnsupportedBatchSize, match="reference runs it slot by slot"):
        LLM(tiny_checkpoint("llama"), max_num_seqs=2, fallback="reference")


def test_a_fallback_that_is_not_needed_changes_nothing(tiny_checkpoint, caplog):
    with LLM(tiny_checkpoint("llama"), fallback="reference") as llm:
        assert (llm.info.backend, llm.info.instead_of) == ("cpu", None)
    assert not caplog.records


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_fallback_is_another_backend(name):
    with pytest.raises(InvalidRequest, match=r"fallback must be another backend \(reference\)"):
        EngineOptions(fallback=name)


def test_a_backend_that_is_not_there_can_be_stood_in_for(tiny_checkpoint, monkeypatch):
    def missing(options):
        raise BackendUnavailable("torch is not installed")

    monkeypatch.setitem(backends.BACKENDS, "torch", missing)
    with pytest.raises(BackendUnavailable, match="torch is not installed; --fallback cpu runs it whole"):
        LLM(tiny_checkpoint("llama"), backend="torch")
    with LLM(tiny_checkpoint("llama"), backend="torch", fallback="cpu") as llm:
        assert (llm.info.backend, llm.info.instead_of) == ("cpu", "torch is not installed")


@pytest.mark.parametrize(
    "command",
    [
        ["run", "MODEL", "Hello", "--max-tokens", "2"],
        ["plan", "MODEL"],
        ["plan", "MODEL", "--memory"],
        ["perplexity", "MODEL", "TEXT", "--ctx", "16"],
        ["embed", "ENCODER", "the sea"],
    ],
    ids=lambda words: " ".join(words[:1] + words[2:3]),
)
def test_json_says_it(command, no_swiglu, tiny_checkpoint, tmp_path, capsys):
    from tests import encoders

    (tmp_path / "text").write_text("the sea is calm and the boats are out. " * 3)
    places = {"MODEL": str(tiny_checkpoint("llama")), "TEXT": str(tmp_path / "text")}
    if "ENCODER" in command:
        encoders.describe(encoders.save("bert", tmp_path / "bert"), length=40)
        places["ENCODER"] = str(tmp_path / "bert")
    words = [places.get(word, word) for word in command]
    sizes = ["--max-num-seqs", "1"] if command[0] in ("run", "plan") else ["--allow-per-slot"]
    assert main([*words, *sizes, "--numerics", "exact", "--fallback", "reference", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["backend"] == "reference"
    assert told["fallback"].endswith("(swiglu) of f32 weights: backend cpu has no adapter for it")


def test_the_bench_report_says_it_and_counts_the_loops_over_slots(no_swiglu, tiny_checkpoint, tmp_path, capsys):
    points = ["--points", "prefill,batch", "--lengths", "8", "--batches", "2", "--repeat", "1", "--numerics", "exact"]
    asked = ["bench", str(tiny_checkpoint("llama")), *points, "--fallback", "reference", "--allow-per-slot"]
    page = tmp_path / "report.html"
    assert main([*asked, "--json", "--html", str(page)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["backend"] == "reference" and told["fallback"].startswith("instruction 5 (swiglu) of f32 weights")
    assert told["per_slot_fallbacks"] > 0
    assert (
        "on reference (numpy, 1 threads, exact, keys and values f32), the fallback: instruction 5" in page.read_text()
    )
    assert main(asked) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.endswith(", the fallback: instruction 5 (swiglu) of f32 weights: backend cpu has no adapter for it")
    assert last.endswith(f"per-slot fallbacks: {told['per_slot_fallbacks']}")
    assert main(asked[:-3]) == 1
    assert "--fallback reference runs it whole" in capsys.readouterr().err


FUSIONS = ["attention_block", "mlp_block", "norm_lm_head"]


@pytest.mark.parametrize("names", [[name] for name in FUSIONS] + [FUSIONS])
@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_fusions_switch_off_without_changing_a_bit(names, numerics, tiny_checkpoint):
    with LLM(tiny_checkpoint("llama"), numerics=numerics) as fused:
        expected = fused.logits(IDS)
    with LLM(tiny_checkpoint("llama"), numerics=numerics, disable_fusion=names) as plain:
        np.testing.assert_array_equal(plain.logits(IDS), expected)


def test_fewer_fusions_mean_more_dispatches(tiny_checkpoint):
    """So that the test before this one compares two different programs."""
    from treadle.inference.cost import counting

    counted = []
    for names in ((), ("mlp_block",)):
        with LLM(tiny_checkpoint("llama"), disable_fusion=names) as llm, counting(llm.engine.core) as counters:
            llm.logits(IDS)
            counted.append(sum(counters.dispatches.values()))
    assert counted[1] == counted[0] + 2 * 3  # three layers, three ops instead of one


def test_unknown_fusions_are_named(tiny_checkpoint):
    with pytest.raises(BackendUnavailable, match=r"cpu has no fusion 'warp'; it has: .*mlp_block"):
        LLM(tiny_checkpoint("llama"), disable_fusion=["warp"])
    with pytest.raises(BackendUnavailable, match="reference fuses nothing; it has no fusion 'mlp_block'"):
        LLM(tiny_checkpoint("llama"), backend="reference", max_num_seqs=1, disable_fusion=["mlp_block"])
