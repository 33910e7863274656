"""config.json of real models: read as transformers reads it, compiled to the shapes of its modules."""

import pytest
import torch
from tests.configs import REAL
from transformers import AutoConfig, AutoModelForCausalLM

from treadle.models.compile import CompileOptions, compile_model
from treadle.models.config import Keys
from treadle.models.registry import family_of_json
from treadle.plan.ir import Container

SAME_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "tie_word_embeddings",
)


def read(values):
    family = family_of_json(values["model_type"], "config.json")
    config = family.config.read(Keys.of_json(values, "config.json"))
    return family.architecture(config), config


@pytest.fixture(params=REAL)
def values(request):
    return REAL[request.param]


def oracle_config(values):
    given = {key: value for key, value in values.items() if key != "model_type"}
    return AutoConfig.for_model(values["model_type"], **given)


def test_fields_are_those_of_transformers(values):
    _, found = read(values)
    expected = oracle_config(values)
    for name in SAME_NAMES:
        assert getattr(found, name) == getattr(expected, name), name
    assert found.rms_norm_eps == pytest.approx(expected.rms_norm_eps, rel=1e-7)
    assert found.rope.args[0] == expected.rope_parameters["rope_theta"]
    assert (found.sliding_window or 0) == (getattr(expected, "sliding_window", None) or 0)


def test_weights_are_those_of_transformers(values):
    """Every parameter of the module, by name and shape, is bound once, and nothing else is."""
    architecture, config = read(values)
    plans = compile_model(architecture, config.sha256(), CompileOptions())
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(oracle_config(values))
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    found = {
        source.tensors[0]: binding.shape
        for binding in plans.prefill.weight_bindings
        for source in binding.sources
        if source.container is Container.SAFETENSORS
    }
    assert found == expected
