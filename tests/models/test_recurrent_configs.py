"""Configs of models with recurrent layers: what they mean, and what is refused by name."""

from __future__ import annotations

import math

import pytest

from treadle.errors import UnsupportedModel
from treadle.models.compile import CompileOptions, compile_model
from treadle.models.config import Keys
from treadle.models.registry import family_of_json
from treadle.plan.ir import Opcode
from treadle.plan.params import MambaNorm, unpack

SSM = {"vocab_size": 320, "hidden_size": 64, "state_size": 16, "num_hidden_layers": 2}
LFM2 = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
MAMBA2 = {**SSM, "num_heads": 4, "head_dim": 32, "n_groups": 2}
HYBRID = {key: value for key, value in LFM2.items() if key != "intermediate_size"} | {"intermediate_size": 64}
CONFIGS = {
    "lfm2": LFM2,
    "jamba": {**HYBRID, "num_experts": 4},
    "granitemoehybrid": {**HYBRID, "mamba_n_heads": 4},
    "qwen3_next": {**HYBRID, "num_experts": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    "mamba": SSM,
    "falcon_mamba": SSM,
    "mamba2": MAMBA2,
}


def read(family, **changes):
    found = family_of_json(family, "config.json")
    values = {key: value for key, value in {**CONFIGS[family], **changes}.items() if value is not ...}
    return found, found.config.read(Keys.of_json({"model_type": family, **values}, "config.json"))


def params(family, opcode, **changes):
    """The params of all ops of a kind."""
    found, config = read(family, **changes)
    plan = compile_model(found.architecture(config), config.sha256(), CompileOptions()).prefill
    return [unpack(plan.param_blocks[i.param_block_id]) for i in plan.plan.instructions if i.opcode is opcode]


REFUSED = [
    ("lfm2", "layer_types", ["conv", "full_attention"]),
    ("lfm2", "layer_types", ["conv", "full_attention", "sliding_attention"]),
    ("lfm2", "layer_types", "conv"),
    ("lfm2", "full_attn_idxs", [3]),
    ("lfm2", "full_attn_idxs", ["1"]),
    ("lfm2", "conv_dim", 65),
    ("lfm2", "num_heads", 8),
    ("lfm2", "block_norm_eps", 1e-3),
    ("lfm2", "block_use_swiglu", False),
    ("lfm2", "use_pos_enc", False),
    ("lfm2", "conv_L_cache", 65),
    ("lfm2", "block_multiple_of", 0),
    ("jamba", "attn_layer_offset", 8),
    ("jamba", "expert_layer_offset", 2),
    ("jamba", "expert_layer_period", 0),
    ("jamba", "mamba_dt_rank", "half"),
    ("jamba", "num_experts_per_tok", 5),
    ("jamba", "rope_theta", 1e4),
    ("granitemoehybrid", "position_embedding_type", "alibi"),
    ("granitemoehybrid", "layer_types", ["mamba", "conv", "mamba"]),
    ("granitemoehybrid", "mamba_d_head", 31),
    ("granitemoehybrid", "mamba_n_groups", 3),
    ("granitemoehybrid", "num_experts_per_tok", 9),
    ("granitemoehybrid", "normalization_function", "layernorm"),
    ("qwen3_next", "attention_bias", True),
    ("qwen3_next", "use_sliding_window", True),
    ("qwen3_next", "linear_num_value_heads", 3),
    ("qwen3_next", "layer_types", ["linear_attention"]),
    ("qwen3_next", "full_attention_interval", 0),
    ("qwen3_next", "mlp_only_layers", "0"),
    ("mamba", "expand", 1.5),
    ("mamba", "intermediate_size", 100),
    ("mamba", "d_inner", 100),
    ("mamba", "time_step_rank", "half"),
    ("mamba", "hidden_act", "mish"),
    ("mamba", "rms_norm", False),
    ("mamba", "ssm_cfg", {"layer": "Mamba2"}),
    ("mamba", "conv_kernel", 0),
    ("mamba", "normed", True),
    ("falcon_mamba", "mixer_rms_eps", "1e-6"),
    ("mamba2", "num_heads", 5),
    ("mamba2", "head_dim", 64),
    ("mamba2", "head_dim", ...),
    ("mamba2", "n_groups", 3),
    ("mamba2", "norm_before_gate", False),
    ("mamba2", "time_step_limit", [0.5, 0.1]),
    ("mamba2", "time_step_limit", [-1.0, 0.1]),
    ("mamba2", "time_step_limit", [0.0, math.nan]),
    ("mamba2", "time_step_limit", [math.inf, math.inf]),
    ("mamba2", "time_step_limit", [0.0]),
    ("mamba2", "time_step_limit", [0.0, "inf"]),
    ("mamba2", "time_step_limit", 0.1),
]


@pytest.mark.parametrize(("family", "key", "value"), REFUSED)
def test_refused_by_name(family, key, value):
    with pytest.raises(UnsupportedModel, match=key):
        read(family, **{key: value})


def test_limits_of_dt():
    for limits in ([0.0, math.inf], [0.0, {"__float__": "Infinity"}], None, ...):
        (found, _) = params("mamba2", Opcode.MAMBA_MIXER, time_step_limit=limits)
        assert (found.dt_min, found.dt_max) == (0.0, math.inf)
    found = params("mamba2", Opcode.MAMBA_MIXER, time_step_limit=[0.25, 0.5])[0]
    assert (found.dt_min, found.dt_max) == (0.25, 0.5)


def test_norms_of_dt_b_and_c():
    assert params("mamba", Opcode.MAMBA_MIXER)[0].norm == MambaNorm.NONE
    found = params("falcon_mamba", Opcode.MAMBA_MIXER, mixer_rms_eps=0.25)[0]
    assert (found.norm, found.norm_eps) == (MambaNorm.RMS_DT_B_C, 0.25)
    assert found.dt_rank == 4  # 64 / 16, for "auto"


def test_older_keys_of_lfm2():
    older = {"intermediate_size": ..., "block_ff_dim": 96, "block_auto_adjust_ff_dim": False, "tie_embedding": False}
    _, config = read("lfm2", full_attn_idxs=[1], **older)
    assert config.attends == (False, True, False)
    assert (config.intermediate_size, config.tie_word_embeddings) == (96, False)
    assert config.rope.args == (1e6,)
    assert read("lfm2", rope_theta=5e5)[1].rope.args == (5e5,)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"intermediate_size": 12288}, 8192),
        ({"intermediate_size": 6656, "block_ffn_dim_multiplier": 1.0}, 4608),
        ({"intermediate_size": 96, "block_multiple_of": 64, "block_ffn_dim_multiplier": 1.5}, 128),
        ({"intermediate_size": 96, "block_ffn_dim_multiplier": None}, 64),
        ({"intermediate_size": 96, "block_auto_adjust_ff_dim": False}, 96),
    ],
)
def test_width_of_lfm2s_mlp(changes, expected):
    assert read("lfm2", **changes)[1].intermediate_size == expected


def opcodes(family, **changes):
    """Of the mixers and of the feed-forward blocks, layer by layer."""
    found, config = read(family, **changes)
    plan = compile_model(found.architecture(config), config.sha256(), CompileOptions()).prefill
    names = {
        Opcode.MULTIHEAD_ATTENTION: "a",
        Opcode.MAMBA_MIXER: "m",
        Opcode.GATED_DELTA_NET: "d",
        Opcode.MOE: "E",
        Opcode.SWIGLU: "F",
    }
    return "".join(names.get(i.opcode, "") for i in plan.plan.instructions)


def test_which_layers_attend_and_which_have_experts():
    assert opcodes("jamba", num_hidden_layers=6) == "mFmEmFmEaFmE"
    assert opcodes("jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_offset=0) == "mEaFmE"
    assert opcodes("jamba", num_experts=1) == "mFmFmF"
    assert opcodes("granitemoehybrid") == "mEmEmE"
    assert opcodes("granitemoehybrid", layer_types=["mamba", "attention", "mamba"], num_local_experts=0) == "mFaFmF"
    assert opcodes("qwen3_next", num_hidden_layers=5) == "dEdEdEaEdE"
    assert opcodes("qwen3_next", full_attention_interval=2, decoder_sparse_step=2, mlp_only_layers=[1]) == "dFaFdF"


def test_rope_of_granite_hybrids():
    assert read("granitemoehybrid")[1].rope is None
    assert read("granitemoehybrid", position_embedding_type="nope")[1].rope is None
    assert read("granitemoehybrid", position_embedding_type="rope")[1].rope.rotary_dim == 16
