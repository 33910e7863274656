"""The reference ops against torch, transformers, or loops written from the formula."""

import math

import gguf
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_attention
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from treadle.compute import reference as ops


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def close(found, expected, rtol=1e-5, atol=1e-6):
    found = np.asarray(found)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.asarray(expected), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("silu", torch.nn.functional.silu),
        ("gelu", torch.nn.functional.gelu),
        ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        ("relu", torch.relu),
        ("relu2", ACT2FN["relu2"]),
        ("tanh", torch.tanh),
        ("sigmoid", torch.sigmoid),
    ],
)
def test_activations(name, oracle):
    x = np.concatenate([normal(1, 300) * 4, np.array([0, -0.0, 1e-30, -90, 90, -1e4, 1e4], np.float32)])
    close(getattr(ops, name)(x), oracle(tensor(x)))


def test_identity_changes_nothing():
    x = normal(1, 5)
    np.testing.assert_array_equal(ops.identity(x), x)


@pytest.mark.parametrize("cap", [0.0, 30.0])
def test_softcap(cap):
    x = normal(2, 50) * 100
    close(ops.softcap(x, cap), cap * np.tanh(x.astype(np.float64) / cap) if cap else x)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(3, 17), (2, 4, 8)])
def test_rmsnorm(shape, offset):
    x, gain = normal(3, *shape) * 3, normal(4, shape[-1])
    oracle = LlamaRMSNorm(shape[-1], eps=1e-3)
    oracle.weight.data = tensor(gain + np.float32(offset))
    close(ops.rmsnorm(x, gain, 1e-3, offset), oracle(tensor(x)).detach())


def test_rmsnorm_without_gain():
    x = normal(3, 3, 9)
    close(ops.rmsnorm(x, None, 0.1), ops.rmsnorm(x, np.ones(9, np.float32), 0.1))


def test_layernorm():
    x, gain, bias = normal(5, 4, 33) + 5, normal(6, 33), normal(7, 33)
    close(
        ops.layernorm(x, gain, bias, 1e-5),
        torch.nn.functional.layer_norm(tensor(x), (33,), tensor(gain), tensor(bias)),
        atol=1e-5,
    )
    close(ops.layernorm(x, None, None, 1e-5), torch.nn.functional.layer_norm(tensor(x), (33,)), atol=1e-5)


def test_layernorm_per_head():
    x, gain = normal(8, 5, 3, 16), normal(9, 3, 16)
    oracle = CohereLayerNorm((3, 16), eps=1e-5)
    oracle.weight.data = tensor(gain)
    close(ops.layernorm_per_head(x, gain.reshape(-1), 1e-5), oracle(tensor(x)).detach())


def test_linear_and_lm_head():
    x, weight, bias = normal(10, 3, 12), normal(11, 7, 12), normal(12, 7)
    expected = torch.nn.functional.linear(tensor(x), tensor(weight), tensor(bias))
    close(ops.linear(x, weight, bias), expected, atol=1e-5)
    close(ops.lm_head(x, weight, bias, 0.5, 2.0), 2 * torch.tanh(expected * 0.5 / 2), atol=1e-5)
    close(ops.lm_head(x, weight), torch.nn.functional.linear(tensor(x), tensor(weight)), atol=1e-5)


def test_embedding_sums_its_tables():
    table, positions, types = normal(13, 10, 6), normal(14, 8, 6), normal(15, 2, 6)
    ids, rows, kinds = np.array([3, 9, 3]), np.array([2, 3, 4]), np.array([0, 1, 1])
    found = ops.embedding(ids, table, 2.0, rows, positions, kinds, types)
    for i in range(3):
        close(found[i], 2.0 * table[ids[i]] + positions[rows[i]] + types[kinds[i]])
    close(ops.embedding(ids, table), table[[3, 9, 3]])
    close(ops.embedding(ids, table, type_table=types), table[[3, 9, 3]] + types[0])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_pool_head(dense, norm):
    x, linear = normal(60, 5, 8), torch.nn.functional.linear
    w = {"dense": normal(61, 6, 8), "dense_bias": normal(62, 6)} if dense else {}
    width = 6 if dense else 8
    head, head_bias = normal(63, 3, width), normal(64, 3)
    n = {"norm": normal(65, width), "norm_bias": normal(66, width)} if norm else {}
    y = torch.tanh(linear(tensor(x), tensor(w["dense"]), tensor(w["dense_bias"])) if dense else tensor(x))
    if norm:
        y = torch.nn.functional.layer_norm(y, (width,), tensor(n["norm"]), tensor(n["norm_bias"]), 1e-5)
    expected = torch.sigmoid(linear(y, tensor(head), tensor(head_bias)))
    found = ops.pool_head(
        x, **w, **n, norm_eps=1e-5, head=head, head_bias=head_bias, head_activation=ops.tanh, out_activation=ops.sigmoid
    )
    close(found, expected)


def test_pooled_rows():
    x = normal(67, 7, 6) * 3
    close(ops.mean_row(x), tensor(x).mean(0))
    x[2] = 0
    close(ops.pool_head(x, normalise=True), torch.nn.functional.normalize(tensor(x), dim=1))


def test_residual_add():
    a, b = normal(16, 2, 3), normal(17, 2, 3)
    close(ops.residual_add(a, b, 0.25), a + b / 4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_swiglu(gated, bias):
    x, gate, up, down = normal(18, 4, 8), normal(19, 12, 8), normal(20, 12, 8), normal(21, 8, 12)
    biases = [normal(22, 12), normal(23, 12), normal(24, 8)] if bias else [None] * 3
    linear = torch.nn.functional.linear
    gate_bias, up_bias, down_bias = (None if b is None else tensor(b) for b in biases)
    u = linear(tensor(x), tensor(up), up_bias)
    h = (
        torch.nn.functional.gelu(linear(tensor(x), tensor(gate), gate_bias)) * u
        if gated
        else torch.nn.functional.gelu(u)
    )
    found = ops.swiglu(x, gate if gated else None, up, down, *biases, activation=ops.gelu)
    close(found, linear(h, tensor(down), down_bias), atol=1e-4)


def test_clamped_gate_is_that_of_gpt_oss():
    from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    experts = GptOssExperts(GptOssConfig(hidden_size=4, intermediate_size=6, num_local_experts=1))
    gate, up = normal(25, 5, 6) * 6, normal(26, 5, 6) * 6
    fused = tensor(np.stack([gate, up], axis=-1).reshape(5, 12))
    expected = experts._apply_gate(fused)
    close(ops.clamped_gate(gate, up, experts.alpha, experts.limit), expected)
    x, weights = normal(27, 5, 4), [normal(28, 6, 4), normal(29, 6, 4), normal(30, 4, 6)]
    found = ops.swiglu(x, *weights, clamp=(experts.alpha, experts.limit))
    h = ops.clamped_gate(x @ weights[0].T, x @ weights[1].T, experts.alpha, experts.limit)
    close(found, h @ weights[2].T)


def rotated_by_hand(x, positions, inv_freq, interleaved, scale):
    """Pair by pair, in f64."""
    y = x.astype(np.float64)
    half = len(inv_freq)
    for row, position in enumerate(positions):
        for head in range(x.shape[1]):
            for i in range(half):
                a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
                angle = float(np.float32(position) * inv_freq[i])
                cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
                first, second = float(x[row, head, a]), float(x[row, head, b])
                y[row, head, a] = first * cos - second * sin
                y[row, head, b] = second * cos + first * sin
    return y


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [4, 8])
def test_rope_by_hand(interleaved, rotary_dim):
    x, positions = normal(31, 3, 2, 8), np.array([0, 7, 900], np.int32)
    inv_freq = (1000.0 ** -(np.arange(0, rotary_dim, 2) / rotary_dim)).astype(np.float32)
    found = ops.rope(x, positions, inv_freq, interleaved, 1.25)
    close(found, rotated_by_hand(x, positions, inv_freq, interleaved, 1.25), atol=1e-5)
    np.testing.assert_array_equal(found[..., rotary_dim:], x[..., rotary_dim:])


def test_rope_as_transformers():
    q, positions = normal(32, 6, 3, 8), np.arange(5, 11, dtype=np.int32)
    inv_freq = (10000.0 ** -(np.arange(0, 8, 2) / 8)).astype(np.float32)
    angles = torch.outer(tensor(positions).float(), tensor(inv_freq))
    both = torch.cat([angles, angles], -1)[None]
    heads_first = tensor(q).transpose(0, 1)[None]
    expected, _ = apply_rotary_pos_emb(heads_first, heads_first, both.cos(), both.sin())
    close(ops.rope(q, positions, inv_freq), expected[0].transpose(0, 1))


def attended_by_hand(q, k, v, q_positions, k_positions, scale, causal, window, cap, sinks, slopes):
    """Query by query, head by head, key by key, in f64."""
    out = np.zeros((q.shape[0], q.shape[1], v.shape[2]))
    for row, head in np.ndindex(q.shape[:2]):
        kv = head * k.shape[1] // q.shape[1]
        scores, seen = [], []
        for key in range(len(k)):
            distance = int(q_positions[row]) - int(k_positions[key])
            if (causal and distance < 0) or (window and abs(distance) >= window):
                continue
            score = float(np.dot(q[row, head].astype(np.float64), k[key, kv])) * scale
            score = cap * math.tanh(score / cap) if cap else score
            scores.append(score - (slopes[head] * abs(distance) if slopes is not None else 0))
            seen.append(key)
        exponentials = np.exp(np.array(scores))
        total = exponentials.sum() + (math.exp(sinks[head]) if sinks is not None else 0)
        out[row, head] = sum(e / total * v[key, kv] for e, key in zip(exponentials, seen, strict=True))
    return out


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 3}, {"cap": 0.5}, {"sinks": normal(40, 6)}, {"slopes": np.abs(normal(41, 6))}],
    ids=["plain", "window", "softcap", "sinks", "alibi"],
)
def test_attention_by_hand(heads, causal, options):
    q, k, v = normal(33, 4, heads, 8), normal(34, 9, 2, 8), normal(35, 9, 2, 5)
    q_positions, k_positions = np.arange(5, 9, dtype=np.int32), np.arange(9, dtype=np.int32)
    given = {"window": 0, "cap": 0.0, "sinks": None, "slopes": None, **options}
    for name in ("sinks", "slopes"):
        given[name] = None if given[name] is None else given[name][:heads]
    found = ops.attention(q, k, v, q_positions, k_positions, 0.3, causal, **given)
    expected = attended_by_hand(q, k, v, q_positions, k_positions, 0.3, causal, **given)
    close(found, expected)


def test_q8_0_is_that_of_ggml():
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((7, 3, 64)) * np.exp2(rng.uniform(-20, 20, (7, 3, 1)))).astype(np.float32)
    x[2, 1] = 0
    kept = ops.to_q8_0(x)
    assert kept.shape == (7, 3, 2) and kept.dtype.itemsize == 34
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(kept.view(np.uint8).reshape(expected.shape), expected)
    np.testing.assert_array_equal(ops.from_q8_0(kept), gguf.quants.dequantize(expected, gguf.GGMLQuantizationType.Q8_0))


def test_attention_as_torch():
    q, k, v = normal(36, 7, 4, 16), normal(37, 7, 4, 16), normal(38, 7, 4, 16)
    positions = np.arange(7, dtype=np.int32)
    by_head = [tensor(x).transpose(0, 1)[None] for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*by_head, is_causal=True)
    close(ops.attention(q, k, v, positions, positions, 0.25), expected[0].transpose(0, 1))


def test_sinks_as_gpt_oss():
    q, k, v, sinks = normal(36, 7, 4, 16), normal(37, 7, 2, 16), normal(38, 7, 2, 16), normal(39, 4)
    positions = np.arange(7, dtype=np.int32)

    class Module(torch.nn.Module):
        num_key_value_groups = 2
        training = False

    module = Module()
    module.sinks = tensor(sinks)
    mask = torch.full((7, 7), -torch.inf).triu(1)[None, None]
    by_head = [tensor(x).transpose(0, 1)[None] for x in (q, k, v)]
    expected, _ = gpt_oss_attention(module, *by_head, mask, scaling=0.25)
    close(ops.attention(q, k, v, positions, positions, 0.25, sinks=sinks), expected[0])


def test_gate_output():
    attended, x, gate = normal(42, 3, 8), normal(43, 3, 5), normal(44, 8, 5)
    close(ops.gate_output(attended, x, gate), tensor(attended) * torch.sigmoid(tensor(x) @ tensor(gate).T), atol=1e-5)


def test_rounding_to_bf16():
    x = np.concatenate([normal(3, 1000), np.float32([0, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 2.0**-50, 3e38])])
    found = ops.round_bf16(x)
    assert np.array_equal(found, tensor(x).to(torch.bfloat16).to(torch.float32).numpy())
    assert not ops.round_bf16(np.float32([2.0**-51, -(2.0**-60), 0.99 * 2.0**-50])).any()


def test_linear_in_bf16():
    x, w, b = normal(4, 7, 96), normal(5, 24, 96), normal(6, 24)
    rounded = [tensor(a).to(torch.bfloat16).to(torch.float64) for a in (x, w)]
    close(ops.linear_bf16(x, w, b), (rounded[0] @ rounded[1].T + tensor(b)).to(torch.float32), rtol=1e-6)
    assert np.abs(ops.linear_bf16(x, w, b) - ops.linear(x, w, b)).max() > 1e-3
