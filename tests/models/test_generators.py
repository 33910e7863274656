"""Generated weights, bit for bit what transformers computes (YaRN: within one ulp)."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers import Phi3Config as OraclePhi3
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from treadle.errors import InvalidWeights, UnsupportedModel
from treadle.models.config import Keys
from treadle.models.families.phi3 import Phi3Config
from treadle.models.generators import generate, rope_default, rope_powers
from treadle.models.rope import partial_rope, read_rope
from treadle.plan.ir import Generator, GeneratorKind

SCALINGS = {
    "default": {},
    "linear": {"factor": 2.5},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "llama3-3.2": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 4096},
    "yarn-betas": {
        "factor": 16.0,
        "original_max_position_embeddings": 2048,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn-attention-factor": {"factor": 4.0, "original_max_position_embeddings": 4096, "attention_factor": 0.75},
    "yarn-mscales": {
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.5,
        "mscale_all_dim": 1.0,
    },
}


@pytest.mark.parametrize(("dim", "theta"), [(64, 1e5), (128, 5e5), (80, 10000.0)])
@pytest.mark.parametrize("name", SCALINGS)
def test_rope_as_transformers(name, dim, theta):
    kind = name.partition("-")[0]
    parameters = {"rope_type": kind, "rope_theta": theta, **SCALINGS[name]}
    config = LlamaConfig(
        hidden_size=4 * dim,
        num_attention_heads=4,
        head_dim=dim,
        max_position_embeddings=16384,
        rope_parameters=dict(parameters),
    )
    if kind == "default":
        expected, scale = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    keys = Keys.of_json({"rope_parameters": parameters}, "config.json")
    rope = read_rope(keys, {"head_dim": dim, "max_position_embeddings": 16384})
    generator = rope.weight().generator
    assert generator is not None
    found = generate(generator)
    assert found.dtype == np.float32
    assert rope.scale == np.float32(scale)
    np.testing.assert_array_max_ulp(found, expected.numpy(), 1 if kind == "yarn" else 0)


@pytest.mark.parametrize("beside", [{"original_max_position_embeddings": 512}, {}], ids=["stated", "phi3's default"])
def test_longrope_of_phi3_counts_from_the_length_beside_the_rope(beside):
    """As microsoft's configs say it; the rope's own object does not repeat it."""
    parameters = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}
    shape = {"hidden_size": 16, "num_attention_heads": 4, "max_position_embeddings": 16384}
    expected = Phi3RotaryEmbedding(OraclePhi3(**shape, **beside, rope_parameters={**parameters, "rope_theta": 1e4}))
    values = {**shape, "vocab_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "rms_norm_eps": 1e-5}
    rope = Phi3Config.read(Keys.of_json({**values, **beside, "rope_scaling": parameters}, "config.json")).rope
    assert rope.scale == np.float32(expected.attention_scaling) > 1
    assert rope.reach() == expected.config.original_max_position_embeddings
    np.testing.assert_array_equal(generate(rope.weight().generator), expected.inv_freq.numpy())


def test_two_original_lengths_must_agree():
    parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1.0]}
    values = {"head_dim": 2, "max_position_embeddings": 512}
    with pytest.raises(UnsupportedModel, match=r"original_max_position_embeddings: found 64, supported: .* \(128\)"):
        partial_rope(1.0, original=4096)(
            Keys.of_json({"rope_parameters": parameters, "original_max_position_embeddings": 128}, "c"), values
        )


@pytest.mark.parametrize("heads", [1, 4, 7, 12, 32, 71])
def test_alibi_slopes_as_bloom(heads):
    expected = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32).reshape(heads, 2)[:, 1]
    found = generate(Generator(GeneratorKind.ALIBI_SLOPES, (float(heads),)))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_factors_divide_the_default_frequencies():
    factors = np.linspace(1, 9, 32, dtype=np.float32)
    expected = rope_default(64, 1e4) / factors
    read = generate(Generator(GeneratorKind.ROPE_FACTORS, (64.0, 1e4)), factors)
    listed = generate(Generator(GeneratorKind.ROPE_FACTOR_LIST, (64.0, 1e4, *map(float, factors))))
    np.testing.assert_array_equal(read, listed)
    np.testing.assert_allclose(read, expected, rtol=1e-6)
    np.testing.assert_allclose(rope_powers(64, 1e4) * rope_default(64, 1e4), np.ones(32), rtol=1e-6)


@pytest.mark.parametrize("factors", [None, np.ones(16, np.float32)])
def test_factors_of_the_wrong_number_are_refused(factors):
    with pytest.raises(InvalidWeights, match=r"expected shape \(32,\)"):
        generate(Generator(GeneratorKind.ROPE_FACTORS, (64.0, 1e4)), factors)
