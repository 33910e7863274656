"""The recurrent mixers against transformers' own modules (their plain torch path), whole and cut at any row."""

import numpy as np
import pytest
import torch
from transformers import FalconMambaConfig, JambaConfig, Lfm2Config, Mamba2Config, MambaConfig, Qwen3NextConfig
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextGatedDeltaNet,
    torch_recurrent_gated_delta_rule,
)

from treadle.compute import reference as ops

ROWS = 21
HIDDEN = 24


def seeded(module, seed=5):
    """The module in eval mode with weights that make every part count; {name: f32 array}."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            matrix = parameter.ndim > 1 and "A_log" not in name
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if matrix else 0.5 + 0.3 * noise)
    module.eval()
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


def rows_in(seed=9):
    return np.random.default_rng(seed).standard_normal((ROWS, HIDDEN)).astype(np.float32)


def expected_of(module, x):
    with torch.no_grad():
        return module(torch.from_numpy(x)[None])[0].numpy()


def check(run, tail, state, x, expected):
    """`run(x, tail, state)` in one call, and in calls that cut the rows anywhere, is what the module gives."""
    np.testing.assert_allclose(run(x, tail.copy(), state.copy()), expected, rtol=2e-5, atol=2e-5)
    for cuts in ([1], [2, 3, 11], range(1, ROWS)):
        carried = tail.copy(), state.copy()
        parts = [run(part, *carried) for part in np.split(x, list(cuts))]
        np.testing.assert_allclose(np.concatenate(parts), expected, rtol=2e-5, atol=2e-5)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def conv_of(weights, prefix="conv1d"):
    return ops.Conv(weights[f"{prefix}.weight"][:, 0], weights.get(f"{prefix}.bias"))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [1, 3, 4])
def test_shortconv(width, bias):
    config = Lfm2Config(
        hidden_size=HIDDEN, num_hidden_layers=1, conv_L_cache=width, conv_bias=bias, layer_types=["conv"]
    )
    module = Lfm2ShortConv(config, 0)
    w, x = seeded(module), rows_in()

    def run(x, tail, state):
        outer = w["out_proj.weight"], w.get("out_proj.bias")
        return ops.shortconv(x, w["in_proj.weight"], w.get("in_proj.bias"), conv_of(w, "conv"), *outer, tail)

    check(run, zeros(width - 1, HIDDEN), zeros(0), x, expected_of(module, x))


def mamba_run(w, act, inputs):
    def run(x, tail, state):
        return ops.mamba(
            x,
            w["in_proj.weight"],
            w.get("in_proj.bias"),
            conv_of(w),
            act,
            inputs,
            w["dt_proj.bias"],
            (0.0, np.inf),
            -np.exp(w["A_log"]).T,
            w["D"],
            w["out_proj.weight"],
            w.get("out_proj.bias"),
            tail,
            state,
        )

    return run


@pytest.mark.parametrize("options", [{}, {"use_bias": True, "use_conv_bias": False, "hidden_act": "gelu"}])
def test_mamba(options):
    config = MambaConfig(hidden_size=HIDDEN, num_hidden_layers=1, state_size=5, time_step_rank=3, **options)
    module = MambaMixer(config, 0)
    w, x = seeded(module), rows_in()
    inputs = ops.SelectiveInputs(w["x_proj.weight"], w["dt_proj.weight"])
    run = mamba_run(w, ops.gelu if "hidden_act" in options else ops.silu, inputs)
    check(run, zeros(3, 2 * HIDDEN), zeros(5, 2 * HIDDEN), x, expected_of(module, x))


def test_mamba_with_norms_of_falcon():
    config = FalconMambaConfig(
        hidden_size=HIDDEN, num_hidden_layers=1, state_size=5, time_step_rank=3, mixer_rms_eps=1e-2, expand=2
    )
    module = FalconMambaMixer(config, 0, initialize_mixer_weights=False)
    w, x = seeded(module), rows_in()
    inputs = ops.SelectiveInputs(w["x_proj.weight"], w["dt_proj.weight"], 1e-2)
    check(mamba_run(w, ops.silu, inputs), zeros(3, 2 * HIDDEN), zeros(5, 2 * HIDDEN), x, expected_of(module, x))


def test_mamba_with_norms_of_jamba():
    config = JambaConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        mamba_d_state=5,
        mamba_dt_rank=3,
        mamba_proj_bias=True,
        rms_norm_eps=1e-2,
    )
    module = JambaMambaMixer(config, 0)
    w, x = seeded(module), rows_in()
    gains = (w[f"{name}_layernorm.weight"] for name in ("dt", "b", "c"))
    inputs = ops.SelectiveInputs(w["x_proj.weight"], w["dt_proj.weight"], 1e-2, *gains)
    check(mamba_run(w, ops.silu, inputs), zeros(3, 2 * HIDDEN), zeros(5, 2 * HIDDEN), x, expected_of(module, x))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("options", [{}, {"time_step_limit": (0.3, 0.8), "use_bias": True, "chunk_size": 8}])
def test_mamba2(groups, options):
    config = Mamba2Config(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_heads=6,
        head_dim=8,
        state_size=5,
        n_groups=groups,
        layer_norm_epsilon=1e-2,
        **options,
    )
    module = Mamba2Mixer(config, 0)
    w, x = seeded(module), rows_in()

    def run(x, tail, state):
        return ops.mamba2(
            x,
            w["in_proj.weight"],
            w.get("in_proj.bias"),
            conv_of(w),
            ops.silu,
            groups,
            w["dt_bias"],
            options.get("time_step_limit", (0.0, np.inf)),
            -np.exp(w["A_log"]),
            w["D"],
            (w["norm.weight"], groups, 1e-2),
            w["out_proj.weight"],
            w.get("out_proj.bias"),
            tail,
            state,
        )

    check(run, zeros(3, 48 + 2 * groups * 5), zeros(6, 5, 8), x, expected_of(module, x))


def test_mamba2_without_a_norm_is_gated_only():
    """With one head of one state, decay e^-dt and B = C = 1 the recurrence can be written out by hand."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, 4)).astype(np.float32)
    in_proj = rng.standard_normal((2 + 2 + 2 + 1, 4)).astype(np.float32)
    conv = ops.Conv(np.array([[1], [1], [0], [0]], np.float32), np.array([0, 0, 1, 1], np.float32))
    z, u, dt = (x @ in_proj[rows].T for rows in (slice(0, 2), slice(2, 4), slice(6, 7)))
    steps, held, expected = np.log1p(np.exp(dt.astype(np.float64) + 0.5)), np.zeros(2), []
    for t in range(6):
        held = np.exp(-steps[t]) * held + steps[t] * u[t]
        expected.append((held + 2 * u[t]) * z[t] / (1 + np.exp(-z[t])))
    one = np.ones(1, np.float32)
    found = ops.mamba2(
        x, in_proj, None, conv, ops.identity, 1, one / 2, (0.0, np.inf), -one, 2 * one, None,
        np.eye(2, dtype=np.float32), None, zeros(0, 4), zeros(1, 1, 2),
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("k_heads", "v_heads"), [(2, 2), (2, 6)])
def test_gated_delta_net(k_heads, v_heads):
    config = Qwen3NextConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        linear_num_key_heads=k_heads,
        linear_num_value_heads=v_heads,
        linear_key_head_dim=8,
        linear_value_head_dim=6,
        layer_types=["linear_attention"],
        rms_norm_eps=1e-2,
    )
    module = Qwen3NextGatedDeltaNet(config, 0)
    w, x = seeded(module), rows_in()
    each = v_heads // k_heads
    by_head = w["in_proj_qkvz.weight"].reshape(k_heads, -1, HIDDEN)
    q, k, v, z = (part.reshape(-1, HIDDEN) for part in np.split(by_head, [8, 16, 16 + 6 * each], axis=1))
    b, a = np.split(w["in_proj_ba.weight"].reshape(k_heads, -1, HIDDEN), 2, axis=1)

    def run(x, tail, state):
        return ops.gated_delta_net(
            x,
            np.concatenate([q, k, v]),
            z,
            b.reshape(-1, HIDDEN),
            a.reshape(-1, HIDDEN),
            conv_of(w),
            ops.silu,
            k_heads,
            w["dt_bias"],
            -np.exp(w["A_log"]),
            w["norm.weight"],
            1e-2,
            w["out_proj.weight"],
            tail,
            state,
        )

    tail = zeros(3, 2 * k_heads * 8 + v_heads * 6)
    check(run, tail, zeros(v_heads, 8, 6), x, expected_of(module, x))


def test_delta_rule_is_transformers_recurrence():
    rng = np.random.default_rng(4)
    q, k, v = (rng.standard_normal((9, h, n)).astype(np.float32) for h, n in ((2, 8), (2, 8), (4, 6)))
    g, beta = (rng.uniform(0.1, 0.9, (9, 4)).astype(np.float32) for _ in range(2))
    state = rng.standard_normal((4, 8, 6)).astype(np.float32)
    given = [torch.from_numpy(a)[None] for a in (q * np.sqrt(8).astype(np.float32), k, v, np.log(g), beta, state)]
    y, last = torch_recurrent_gated_delta_rule(*given, output_final_state=True)
    np.testing.assert_allclose(ops.delta_rule(q, k, v, g, beta, state), y[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state, last[0], rtol=1e-5, atol=1e-5)


def test_softplus():
    x = np.array([-80, -20, -1, 0, 1, 20, 1e4], np.float32)
    found = ops.softplus(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.logaddexp(0, x.astype(np.float64)), rtol=1e-6)
