"""`treadle parity FOLDER`: a checkpoint against transformers, and what run and plan say of it afterwards."""

import json
import os
from pathlib import Path

import pytest
from tests import tiny
from tests.cli.command import failure, treadle, treadle_json

from treadle.parity.certify import TEXT
from treadle.parity.matrix import read_matrix


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {**os.environ, "TREADLE_HOME": str(tmp_path_factory.mktemp("home"))}


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return tiny_checkpoint("llama")


def test_a_checkpoint_is_compared_and_certified(model, environment):
    run = ("run", model, "the inner", "--max-tokens", 4, "--numerics", "exact")
    assert treadle_json(*run, env=environment)["certified"] is False
    assert "exact), uncertified |" in treadle(*run, env=environment).stderr

    found = treadle_json("parity", model, "--backend", "cpu", "--numerics", "exact", env=environment)
    (case,) = found["cases"]
    assert (case["family"], case["case"], case["weights"], case["status"]) == ("llama", "llama", "stored", "passed")
    assert 0 < case["rel_err"] < 1e-4
    assert case["bitwise"] is True

    assert treadle_json(*run, env=environment)["certified"] is True
    assert "exact), certified |" in treadle(*run, env=environment).stderr
    plan = ("plan", model, "--numerics", "exact")
    assert treadle_json(*plan, env=environment)["certified"] is True
    assert treadle_json(*plan, "--memory", env=environment)["certified"] is True
    assert ", exact, certified, sequences" in treadle(*plan, env=environment).stderr
    assert treadle_json("plan", model, env=environment)["certified"] is False

    (record,) = (Path(environment["TREADLE_HOME"]) / "certificates").iterdir()
    kept = json.loads(record.read_text())
    assert kept["identity"]["plan"] == case["plan_hash"]
    assert kept["content"] == case["weights_hash"]
    assert set(kept["versions"]) == {"treadle", "transformers", "torch"}
    assert kept["figures"]["rel_err"] == case["rel_err"]


def test_the_text_fills_all_prompts():
    assert len(tiny.tokenizer().encode(TEXT).ids) > max(read_matrix().defaults.lengths) + 9 * 5


def test_what_is_no_checkpoint_is_refused(tmp_path, environment):
    assert "expected a folder with config.json" in failure("parity", tmp_path, env=environment)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    assert "transformers cannot open it" in failure("parity", tmp_path, env=environment)
