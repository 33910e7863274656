"""Every config value set to something else: refused by name, or right against transformers; never silently wrong."""

import pytest

from treadle.models.config import Config
from treadle.parity.flips import FAULTS, Flip, Outcome, flips, names_a_key, names_a_tensor, run_flips
from treadle.parity.matrix import read_matrix

MATRIX = read_matrix()
SAMPLE = 6
"""Flips a family in CI; `treadle parity --flips` runs them all."""


@pytest.mark.parametrize("family", MATRIX.families())
def test_a_sample_of_flips(family):
    reports = list(run_flips(MATRIX.select(family, None), MATRIX.defaults, SAMPLE, threads=1))
    assert len(reports) == SAMPLE
    assert [report for report in reports if report.outcome in FAULTS] == []


def outcomes(chosen, monkeypatch):
    """Of these flips of the first llama case."""
    monkeypatch.setattr("treadle.parity.flips.flips", lambda config, known: chosen)
    reports = run_flips(MATRIX.select("llama", "gqa"), MATRIX.defaults, threads=1)
    return {report.key: report.outcome for report in reports}


def test_outcomes_of_flips_whose_answer_is_known(monkeypatch):
    chosen = [
        Flip(("hidden_act",), "relu"),
        Flip(("rope_parameters", "rope_theta"), 500.0),
        Flip(("use_cache",), False),
        Flip(("attention_bias",), True),
        Flip(("rope_parameters", "rope_type"), "spiral"),
        Flip(("unheard-of",), 1),
    ]
    assert outcomes(chosen, monkeypatch) == {
        "hidden_act": Outcome.RIGHT,
        "rope_parameters.rope_theta": Outcome.RIGHT,
        "use_cache": Outcome.UNCHANGED,
        "attention_bias": Outcome.RIGHT,
        "rope_parameters.rope_type": Outcome.REFUSED,
        "unheard-of": Outcome.REFUSED,
    }


def test_a_value_that_is_dropped_is_found(monkeypatch):
    """With the activation and theta read as what they were before the flip."""
    read = Config.read.__func__

    def dropping(cls, keys):
        keys._values = {**keys._values, "hidden_act": "silu", "rms_norm_eps": 1e-5}
        return read(cls, keys)

    monkeypatch.setattr(Config, "read", classmethod(dropping))
    chosen = [Flip(("hidden_act",), "relu"), Flip(("rms_norm_eps",), 0.5), Flip(("use_cache",), False)]
    assert outcomes(chosen, monkeypatch) == {
        "hidden_act": Outcome.WRONG,
        "rms_norm_eps": Outcome.WRONG,
        "use_cache": Outcome.UNCHANGED,
    }


def test_an_error_of_python_is_a_crash(monkeypatch):
    def crash(cls, keys):
        raise KeyError("hidden_act")

    monkeypatch.setattr(Config, "read", classmethod(crash))
    assert outcomes([Flip(("use_cache",), False)], monkeypatch) == {"use_cache": Outcome.CRASHED}


def test_flips_change_every_value_to_every_kind():
    config = {"a": True, "n": 4, "x": 0.5, "s": "one", "none": None, "list": ["p", "q"], "inner": {"y": 2.0}}
    found = flips(config, {"s": ["one", "two"], "list": ["p", "r"], "none": ["z"]})
    values = {}
    for flip in found:
        values.setdefault(".".join(flip.path), []).append(flip.value)
    assert values == {
        "unheard-of": [1],
        "a": [False, None],
        "n": [5, 8, 2, None],
        "x": [1.0, 0.0, None],
        "s": ["unheard-of", None, "two"],
        "none": [True, 16, 0.5, "z"],
        "list": [["r", "q"], ["p"], None],
        "inner.y": [3.25, 0.0, None],
        "inner": [None],
        "inner.unheard-of": [1.5],
    }
    assert found[-1].applied(config)["inner"] == {"y": 2.0, "unheard-of": 1.5}
    assert config["inner"] == {"y": 2.0}


def test_a_message_must_name_a_key():
    config = {"num_attention_heads": 5, "rope_parameters": {"factor": 2.0}}
    assert names_a_key("config.json: num_attention_heads: found 5, supported: 4", config)
    assert names_a_key("config.json: rope_parameters: key 'factor' (value 2.0) is not known", config)
    assert not names_a_key("config.json: something about num_attention_heads is wrong", config)


def test_a_message_may_name_a_tensor():
    """Of weights that were saved before the flip, where transformers refuses it as well."""
    assert names_a_tensor("model: tensor 'model.layers.0.self_attn.k_proj.bias' has no place in this architecture")
    assert not names_a_tensor("model: a tensor has no place in this architecture")
