"""Which layers see a window, against transformers' own reading of the same config."""

from __future__ import annotations

import pytest
import transformers

from treadle.errors import UnsupportedModel
from treadle.models.config import Keys
from treadle.models.registry import family_of_gguf, family_of_json

BASE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
SLIDING, FULL = "sliding_attention", "full_attention"
CASES = [
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 7}),
    ("qwen2", {"use_sliding_window": False, "max_window_layers": 2, "sliding_window": 7}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": None}),
    ("qwen3", {"use_sliding_window": True, "layer_types": [SLIDING, FULL, FULL, FULL, SLIDING]}),
    ("gemma2", {}),
    ("gemma2", {"sliding_window": 7, "layer_types": [FULL, SLIDING, SLIDING, FULL, FULL]}),
    ("gemma3_text", {}),
    ("gemma3_text", {"sliding_window_pattern": 2, "sliding_window": 7}),
    ("gemma3_text", {"sliding_window_pattern": 1, "sliding_window": None}),
    ("gemma3_text", {"sliding_window_pattern": 2, "_sliding_window_pattern": 3}),
    ("gemma3_text", {"sliding_window_pattern": 2, "layer_types": [SLIDING] * 5}),
]


def read(model_type, **changes):
    values = {**BASE, "model_type": model_type, **changes}
    return family_of_json(model_type, "c").config.read(Keys.of_json(values, "c"))


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_windows_are_those_of_transformers(model_type, changes):
    oracle = transformers.AutoConfig.for_model(model_type, **{**BASE, **changes})
    expected = tuple(oracle.sliding_window if kind == SLIDING else 0 for kind in oracle.layer_types)
    assert read(model_type, **changes).windows == expected


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("qwen2", {"layer_types": [FULL] * 4}, "layer_types: found .*, supported: 5 of full_attention"),
        ("qwen2", {"layer_types": [FULL] * 4 + ["chunked_attention"]}, "layer_types: found"),
        ("qwen2", {"layer_types": [FULL] * 4 + [[]]}, "layer_types: found"),
        ("qwen2", {"layer_types": [SLIDING] * 5}, "layer_types: found 'sliding_attention', supported: full_attention"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 0}, "sliding_window: found 0, supported: 1 to"),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 0}, "sliding_window: found 0, supported: 1 to"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window: found 1, supported: bool"),
        ("qwen2", {"max_window_layers": -1}, "max_window_layers: found -1"),
        ("gemma3_text", {"sliding_window": None}, "sliding_window: found None, supported: a number"),
        ("gemma3_text", {"sliding_window": 0}, "sliding_window: found 0"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern: found 0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention: found True"),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping: found 5.0, supported: None"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters: found .*full_attention"),
        (
            "gemma3_text",
            {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_parameters": {FULL: {"rope_theta": 1e4}}},
            "rope_scaling: found",
        ),
    ],
)
def test_refused_by_name(model_type, changes, message):
    with pytest.raises(UnsupportedModel, match=message):
        read(model_type, **changes)


def gguf(architecture, **changes):
    values = {
        "block_count": 5,
        "context_length": 512,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "vocab_size": 320,
        **changes,
    }
    metadata = {"general.architecture": architecture} | {
        f"{architecture}.{key}": value for key, value in values.items()
    }
    return family_of_gguf(architecture, "a.gguf").config.read(Keys.of_gguf(metadata, {}, "a.gguf"))


PATTERN = "attention.sliding_window_pattern"


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        ("qwen2", {}, (0, 0, 0, 0, 0)),
        ("gemma2", {}, (4096, 0, 4096, 0, 4096)),
        ("gemma3", {"attention.sliding_window": 7}, (7, 7, 7, 7, 7)),
        ("gemma3", {"attention.sliding_window": 7, PATTERN: 3}, (7, 7, 0, 7, 7)),
        ("gemma3", {"attention.sliding_window": 7, PATTERN: [True, False, False, True, False]}, (7, 0, 0, 7, 0)),
    ],
)
def test_gguf_windows(architecture, changes, expected):
    assert gguf(architecture, **changes).windows == expected


def test_gguf_windows_refused_by_name():
    with pytest.raises(UnsupportedModel, match=r"sliding_window_pattern: found .*, supported: 5 booleans"):
        gguf("gemma3", **{PATTERN: [True, False]})
    with pytest.raises(UnsupportedModel, match=r"key 'attention.sliding_window'"):
        gguf("qwen2", **{"attention.sliding_window": 7})


def test_query_scale_of_gguf_is_llama_cpps():
    """hidden_size / heads of the 27B models, which it knows by their layers; else the width of a head."""
    assert gguf("gemma3").query_pre_attn_scalar == 16.0
    wide = {"embedding_length": 96, "attention.head_count": 4}
    assert gguf("gemma3", **wide).query_pre_attn_scalar == 16.0
    assert gguf("gemma3", **wide, block_count=62).query_pre_attn_scalar == 24.0
    assert gguf("gemma2", **wide, block_count=46).query_pre_attn_scalar == 24.0


def test_a_rope_for_each_kind_of_layer():
    """The way of transformers 4 and that of 5 say the same; the scaling is that of full attention only."""
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = read("gemma3_text", rope_theta=5e5, rope_local_base_freq=2e4, rope_scaling=scaling)
    new = {FULL: {"rope_theta": 5e5, **scaling}, SLIDING: {"rope_type": "default", "rope_theta": 2e4}}
    assert old == read("gemma3_text", rope_parameters=new)
    assert (old.rope.args, old.local_rope.args) == ((5e5, 8.0), (2e4,))
    default = read("gemma3_text")
    assert (default.rope.args, default.local_rope.args) == ((1e6,), (1e4,))
