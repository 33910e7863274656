"""Config keys of models with experts: what means the same, what is refused by name."""

import pytest
from transformers import GptOssConfig, MixtralConfig, Qwen3MoeConfig

from treadle.errors import UnsupportedModel
from treadle.models.config import Keys
from treadle.models.quantisation import is_exact
from treadle.models.registry import family_of_gguf, family_of_json

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


def read(config, drop=(), **changes):
    values = {**config.to_dict(), **changes}
    for key in drop:
        values.pop(key, None)
    return family_of_json(values["model_type"], "config.json").config.read(Keys.of_json(values, "config.json"))


def test_experts_are_counted_under_either_name():
    config = Qwen3MoeConfig(num_experts=12, num_hidden_layers=2)
    values = config.to_dict()
    name = "num_local_experts" if "num_local_experts" in values else "num_experts"
    other = {"num_local_experts": "num_experts", "num_experts": "num_local_experts"}[name]
    assert read(config).num_experts == read(config, [name], **{other: 12}).num_experts == 12
    with pytest.raises(UnsupportedModel, match="num_local_experts"):
        read(config, **{name: 12, other: 13})
    with pytest.raises(UnsupportedModel, match="num_experts_per_tok: found 13, supported: at most 12"):
        read(config, num_experts_per_tok=13)


@pytest.mark.parametrize(("step", "plain", "sparse"), [(1, None, "1111"), (2, [], "0101"), (1, [0, 3], "0110")])
def test_which_layers_have_experts(step, plain, sparse):
    config = Qwen3MoeConfig(num_hidden_layers=4, decoder_sparse_step=step, mlp_only_layers=plain)
    assert read(config).sparse == tuple(digit == "1" for digit in sparse)


def test_layers_without_experts_must_be_numbers():
    with pytest.raises(UnsupportedModel, match="mlp_only_layers"):
        read(Qwen3MoeConfig(num_hidden_layers=2), mlp_only_layers=["0"])


def test_a_theta_that_is_not_stated_is_that_of_the_family():
    config = MixtralConfig(num_hidden_layers=1)
    assert read(config, ["rope_parameters", "rope_theta"]).rope.args == (1e6,)


@pytest.mark.parametrize(("stated", "kept"), [({}, 1.0), ({"truncate": None}, 0.0), ({"truncate": False}, 0.0)])
def test_a_ramp_that_is_null_is_not_cut(stated, kept):
    """transformers takes truncate as true where it is absent, and null as false."""
    config = GptOssConfig(num_hidden_layers=2)
    assert read(config, rope_parameters={**YARN, **stated}).rope.args[-1] == kept


@pytest.mark.parametrize("drop", [(), ("rope_parameters",)])
def test_gpt_oss_must_state_its_rope(drop):
    changes = {} if drop else {"rope_parameters": None}
    with pytest.raises(UnsupportedModel, match="rope_parameters: found None"):
        read(GptOssConfig(num_hidden_layers=2), drop, **changes)


def test_a_llama_with_experts_is_mixtral():
    assert family_of_gguf("llama", "a.gguf", metadata={"llama.expert_count": 8}).config.MODEL_TYPE == "mixtral"
    assert family_of_gguf("llama", "a.gguf").config.MODEL_TYPE == "llama"


def test_routers_and_biases_are_never_quantised():
    kept = {"router": (8, 64), "shared_router": (1, 64), "gate_bias": (8, 64), "down_bias": (8, 64)}
    assert all(is_exact(f"layers.0.moe.{slot}", shape) for slot, shape in kept.items())
    assert not any(is_exact(f"layers.0.moe.{slot}", (8, 64, 64)) for slot in ("gate", "up", "down"))
