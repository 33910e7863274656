"""Multi-head latent attention against the attention blocks of transformers."""

import numpy as np
import pytest
import torch
from tests.compute.test_reference_moe import seeded
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from treadle.compute import reference as ops

HEADS, HIDDEN, ROWS, LATENT, NOPE, ROPE, VALUE = 4, 40, 37, 24, 12, 8, 20
SIZES = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "kv_lora_rank": LATENT,
    "qk_nope_head_dim": NOPE,
    "qk_rope_head_dim": ROPE,
    "v_head_dim": VALUE,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.7}
CASES = {
    "v2": (DeepseekV2Config, DeepseekV2Attention, DeepseekV2RotaryEmbedding, {"q_lora_rank": None}),
    "v2-low-rank": (DeepseekV2Config, DeepseekV2Attention, DeepseekV2RotaryEmbedding, {"q_lora_rank": 16}),
    "v2-yarn": (
        DeepseekV2Config,
        DeepseekV2Attention,
        DeepseekV2RotaryEmbedding,
        {"q_lora_rank": None, "rope_parameters": {**YARN, "original_max_position_embeddings": 16}},
    ),
    "v3": (DeepseekV3Config, DeepseekV3Attention, DeepseekV3RotaryEmbedding, {"q_lora_rank": 16}),
    "v3-halves": (
        DeepseekV3Config,
        DeepseekV3Attention,
        DeepseekV3RotaryEmbedding,
        {"q_lora_rank": 16, "rope_interleave": False, "attention_bias": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_blocks_of_transformers(name):
    config_class, block_class, rope_class, changes = CASES[name]
    config = config_class(**{**SIZES, **changes}, attn_implementation="eager")
    block, rope = seeded(block_class(config, 0)), rope_class(config)
    x = torch.randn(1, ROWS, HIDDEN, generator=torch.Generator().manual_seed(3))
    positions = torch.arange(ROWS)[None]
    mask = torch.full((ROWS, ROWS), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        expected = block(x, attention_mask=mask, position_embeddings=rope(x, positions))[0][0].numpy()
    found = attended(block, rope, x[0].numpy(), getattr(config, "rope_interleave", True))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def attended(block, rope, x, interleaved):
    """The block's output from its weights, by the definitions of ops."""

    def projected(name, rows):
        layer = getattr(block, name)
        bias = None if layer.bias is None else layer.bias.detach().numpy()
        return ops.linear(rows, layer.weight.detach().numpy(), bias)

    def normed(name, rows):
        return ops.rmsnorm(rows, getattr(block, name).weight.detach().numpy(), 1e-6)

    if block.q_lora_rank is None:
        q = projected("q_proj", x)
    else:
        q = projected("q_b_proj", normed("q_a_layernorm", projected("q_a_proj", x)))
    q = q.reshape(ROWS, HEADS, NOPE + ROPE)
    kv = projected("kv_a_proj_with_mqa", x)
    positions = np.arange(ROWS, dtype=np.int32)
    turn = (positions, rope.inv_freq.numpy(), interleaved, float(rope.attention_scaling))
    mixed = ops.latent_attention(
        q[..., :NOPE],
        ops.rope(q[..., NOPE:], *turn),
        normed("kv_a_layernorm", kv[:, :LATENT]),
        ops.rope(kv[:, None, LATENT:], *turn)[:, 0],
        block.kv_b_proj.weight.detach().numpy(),
        positions,
        positions,
        float(block.scaling),
    )
    return projected("o_proj", mixed.reshape(ROWS, -1))


def test_heads_absorb_their_part_of_kv_b():
    """The form that backends compute: one latent is key and value of all heads (arXiv:2405.04434, section 2.1.2)."""
    rng = np.random.default_rng(2)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    q, q_rope, latents, k_rope = normal(5, HEADS, NOPE), normal(5, HEADS, ROPE), normal(9, LATENT), normal(9, ROPE)
    kv_b = normal(HEADS * (NOPE + VALUE), LATENT)
    queries, keys = np.arange(4, 9, dtype=np.int32), np.arange(9, dtype=np.int32)
    expected = ops.latent_attention(q, q_rope, latents, k_rope, kv_b, queries, keys, 0.3)
    of_heads = kv_b.reshape(HEADS, NOPE + VALUE, LATENT)
    absorbed = np.concatenate([np.einsum("rhn,hnl->rhl", q, of_heads[:, :NOPE]), q_rope], axis=-1)
    key = np.concatenate([latents, k_rope], axis=-1)[:, None]
    mixed = ops.attention(absorbed, key, latents[:, None], queries, keys, 0.3)
    found = np.einsum("rhl,hvl->rhv", mixed, of_heads[:, NOPE:])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
