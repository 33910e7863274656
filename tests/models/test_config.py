"""The strict config reader: what it takes, what it refuses by name, and that both doors agree."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.configs import SMOLLM2
from transformers import LlamaConfig as OracleLlama
from transformers import MistralConfig as OracleMistral

from treadle.errors import UnsupportedModel
from treadle.formats.tensors import TensorInfo
from treadle.models.config import Keys
from treadle.models.families.llama import LlamaConfig
from treadle.models.families.mistral import MistralConfig
from treadle.models.registry import family_of_gguf, family_of_json
from treadle.plan.ir import GeneratorKind
from treadle.plan.params import Activation

BASE = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LLAMA_GGUF = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.rope.dimension_count": 16,
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    "llama.vocab_size": 320,
    "tokenizer.ggml.model": "gpt2",
}


def llama(**changes):
    return LlamaConfig.read(Keys.of_json({**BASE, **changes}, "config.json"))


def gguf(tensors=(), without=(), **changes):
    values = {**LLAMA_GGUF, **{key.replace("__", "."): value for key, value in changes.items()}}
    values = {key: value for key, value in values.items() if key not in without}
    infos = {name: TensorInfo(name, "f32", shape, 0, 0) for name, shape in dict(tensors).items()}
    return LlamaConfig.read(Keys.of_gguf(values, infos, "a.gguf"))


@pytest.mark.parametrize("oracle", [OracleLlama, OracleMistral])
def test_defaults_are_those_of_transformers(oracle):
    cls = {OracleLlama: LlamaConfig, OracleMistral: MistralConfig}[oracle]
    expected = oracle()
    required = {key: value for key, value in BASE.items() if key not in ("num_key_value_heads", "model_type")}
    if cls is MistralConfig:
        required["num_key_value_heads"] = 2
    found = cls.read(Keys.of_json(required, "config.json"))
    assert found.hidden_act is Activation[expected.hidden_act.upper()]
    assert found.tie_word_embeddings == expected.tie_word_embeddings
    assert found.rope.args == (expected.rope_parameters["rope_theta"],)
    assert found.head_dim == 16
    if cls is LlamaConfig:
        assert found.num_key_value_heads == 4
        assert (found.attention_bias, found.mlp_bias) == (expected.attention_bias, expected.mlp_bias)
    else:
        assert found.sliding_window == expected.sliding_window


@pytest.mark.parametrize("oracle", [OracleLlama(), OracleMistral(), OracleMistral(sliding_window=None)])
def test_what_transformers_saves_is_read_whole(oracle):
    for full in (oracle.to_diff_dict(), oracle.to_dict()):
        config = family_of_json(full["model_type"], "config.json").config.read(Keys.of_json(full, "config.json"))
        for field in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"):
            assert getattr(config, field) == getattr(oracle, field)


def test_smollm2_is_the_same_through_both_doors():
    metadata = {
        "general.architecture": "llama",
        "general.type": "model",
        "llama.block_count": 30,
        "llama.context_length": 8192,
        "llama.embedding_length": 576,
        "llama.feed_forward_length": 1536,
        "llama.attention.head_count": 9,
        "llama.attention.head_count_kv": 3,
        "llama.rope.freq_base": 100000.0,
        "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
        "llama.vocab_size": 49152,
        "llama.rope.dimension_count": 64,
    }
    from_json = LlamaConfig.read(Keys.of_json(SMOLLM2, "config.json"))
    from_gguf = LlamaConfig.read(Keys.of_gguf(metadata, {}, "a.gguf"))
    assert from_json == from_gguf
    assert from_json.sha256() == from_gguf.sha256()
    assert from_json.tie_word_embeddings
    assert from_json.rope.args == (100000.0,)


def test_every_field_counts_in_the_hash():
    base = llama()
    changed = [
        llama(**change)
        for change in (
            {"vocab_size": 321},
            {"hidden_size": 128, "head_dim": 16},
            {"intermediate_size": 97},
            {"num_hidden_layers": 3},
            {"num_attention_heads": 2, "head_dim": 16},
            {"num_key_value_heads": 4},
            {"head_dim": 32},
            {"max_position_embeddings": 513},
            {"hidden_act": "gelu"},
            {"rms_norm_eps": 1e-6},
            {"tie_word_embeddings": True},
            {"rope_theta": 10001.0},
            {"attention_bias": True},
            {"mlp_bias": True},
        )
    ]
    hashes = {config.sha256() for config in [base, *changed]}
    assert len(hashes) == len(changed) + 1
    different = {
        f.name for f in dataclasses.fields(base) if any(getattr(c, f.name) != getattr(base, f.name) for c in changed)
    }
    assert different == {f.name for f in dataclasses.fields(base)} - {"sliding_window"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_scale": 0.5}, "key 'logit_scale' .value 0.5. is not known"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"hidden_act": "mish"}, "hidden_act: found 'mish', supported: silu"),
        ({"vocab_size": "320"}, "vocab_size: found '320', supported: int"),
        ({"vocab_size": True}, "vocab_size: found True, supported: int"),
        ({"vocab_size": 320.0}, "vocab_size: found 320.0, supported: int"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: found 0, supported: 1 to 1024"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: found 1000000000"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: found nan"),
        ({"rms_norm_eps": None}, "rms_norm_eps: missing"),
        ({"attention_bias": "yes"}, "attention_bias: found 'yes', supported: bool"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: found 3, supported: a divisor of 4"),
        ({"head_dim": 15}, "head_dim: found 15, supported: an even number"),
        ({"hidden_size": 66}, "hidden_size: found 66, supported: a multiple of 4 heads"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder: found True, supported: False"),
        ({"rope_interleaved": True}, "rope_interleaved: found True"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures: found 'LlamaForSequenceClass"),
        (
            {"rope_scaling": {"rope_type": "proportional", "factor": 2.0}},
            "rope_type: found 'proportional', supported: default, dynamic, linear",
        ),
        ({"rope_scaling": {"type": "dynamic"}}, "factor: found None"),
        ({"rope_scaling": {"type": "longrope"}}, "short_factor: found None, supported: a list of 8 numbers"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor: found None, supported: a number"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling: factor: found '2'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}}, "rope_scaling: key 'mscale'"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "type: found 'linear'"),
        ({"rope_scaling": "linear"}, "rope_scaling: found 'linear', supported: an object"),
        ({"rope_scaling": {"type": [1]}}, r"rope_type: found \[1\]"),
        ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}, "rope_theta: found 1.0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: found 0.5, supported: 1.0"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling: found",
        ),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            "low_freq_factor: found 4.0, supported: less than",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1}}, "truncate: found 1"),
    ],
)
def test_refused_by_name(change, message):
    with pytest.raises(UnsupportedModel, match=message) as refusal:
        llama(**change)
    assert "config.json" in str(refusal.value)


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        ("gpt2", {"n_head": 5}, "n_embd: found 64, supported: a multiple of 5 heads"),
        (
            "stablelm",
            {"num_attention_heads": 16},
            "num_attention_heads: found 16, supported: an even number of rotated",
        ),
    ],
)
def test_refusals_name_keys_that_the_config_has(model_type, change, message):
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "max_position_embeddings": "n_positions"}
    of_gpt2 = {names.get(key, key): value for key, value in BASE.items() if key in {*names, "vocab_size"}}
    config = {**(of_gpt2 if model_type == "gpt2" else BASE), "model_type": model_type, **change}
    config.pop("rms_norm_eps", None)
    with pytest.raises(UnsupportedModel, match=f"config.json: {message}"):
        family_of_json(model_type, "config.json").config.read(Keys.of_json(config, "config.json"))


def test_a_missing_field_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match="hidden_size: missing"):
        LlamaConfig.read(Keys.of_json({key: BASE[key] for key in BASE if key != "hidden_size"}, "config.json"))


def test_null_means_the_default():
    assert llama(num_key_value_heads=None, head_dim=None, rope_scaling=None).num_key_value_heads == 4
    values = {key: value for key, value in BASE.items() if key != "model_type"}
    read = MistralConfig.read
    assert read(Keys.of_json({**values, "sliding_window": None}, "c")).sliding_window is None
    assert read(Keys.of_json(values, "c")).sliding_window == 4096


def test_rope_parameters_old_and_new_are_one():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = llama(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    older = llama(rope_theta=5e5, rope_scaling={"type": "llama3", **scaling})
    new = llama(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    assert old == older == new
    assert new.rope.kind is GeneratorKind.ROPE_LLAMA3
    assert new.rope.args == (5e5, 8.0, 1.0, 4.0, 64.0)


def test_gguf_and_json_agree():
    assert gguf(tensors={"output.weight": (320, 64)}) == llama()


def test_gguf_tells_by_its_tensors():
    assert gguf().tie_word_embeddings
    biased = gguf(tensors={"blk.0.attn_q.bias": (64,), "blk.0.ffn_up.bias": (96,)})
    assert (biased.attention_bias, biased.mlp_bias) == (True, True)
    table = gguf(tensors={"token_embd.weight": (777, 64)}, without=("llama.vocab_size",))
    assert table.vocab_size == 777
    assert gguf(tensors={"rope_freqs.weight": (8,)}).rope.kind is GeneratorKind.ROPE_FACTORS


@pytest.mark.parametrize(
    ("change", "kind", "args"),
    [
        ({}, GeneratorKind.ROPE_DEFAULT, (10000.0,)),
        ({"llama__rope__freq_base": 5e5}, GeneratorKind.ROPE_DEFAULT, (5e5,)),
        ({"llama__rope__scaling__type": "none"}, GeneratorKind.ROPE_DEFAULT, (10000.0,)),
        (
            {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0},
            GeneratorKind.ROPE_LINEAR,
            (10000.0, 4.0),
        ),
        ({"llama__rope__scale_linear": 4.0}, GeneratorKind.ROPE_LINEAR, (10000.0, 4.0)),
        (
            {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 4.0},
            GeneratorKind.ROPE_YARN,
            (10000.0, 4.0, 32.0, 1.0, 512.0, 1.0),
        ),
    ],
)
def test_gguf_rope(change, kind, args):
    rope = gguf(**change).rope
    assert (rope.kind, rope.args) == (kind, args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llama__logit_scale": 0.5}, "key 'logit_scale'"),
        ({"llama__expert_count": 8}, "expert_count: found 8, supported: 0"),
        (
            {"llama__attention__head_count_kv": np.array([2, 2], np.int32)},
            r"head_count_kv: found \[2, 2\], supported: int",
        ),
        ({"llama__attention__value_length": 8}, "attention.value_length: found 8, supported: 16"),
        ({"llama__rope__dimension_count": 8}, "rope.dimension_count: found 8, supported: 16"),
        (
            {"llama__rope__scaling__type": "longrope"},
            "rope.scaling.type: found 'longrope', supported: none, linear, yarn",
        ),
        ({"llama__rope__scaling__attn_factor": 0.5}, "attn_factor: found 0.5"),
        ({"llama__attention__causal": False}, "attention.causal: found False"),
        ({"general__type": "adapter"}, "general.type: 'adapter'"),
    ],
)
def test_gguf_refused_by_name(change, message):
    with pytest.raises(UnsupportedModel, match=message) as refusal:
        gguf(**change)
    assert "a.gguf" in str(refusal.value)


def test_unknown_families_are_refused_with_the_known_ones():
    with pytest.raises(UnsupportedModel, match=r"config.json: model_type: 'qwen9' is not supported; known: .*llama"):
        family_of_json("qwen9", "config.json")
    with pytest.raises(UnsupportedModel, match=r"general.architecture: 'rwkv99' is not supported; known: .*llama"):
        family_of_gguf("rwkv99", "a.gguf")
    with pytest.raises(UnsupportedModel, match="None is not supported"):
        family_of_json(None, "config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ROPE_KEYS = ("rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "rope_theta", "beta_fast", "mscale")
HF_KEYS = (
    *BASE,
    "head_dim",
    "hidden_act",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "architectures",
    "mlp_bias",
)
KINDS = st.sampled_from(["default", "linear", "llama3", "yarn"])


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(st.sampled_from(HF_KEYS), JSON, max_size=3),
    st.none() | st.dictionaries(st.sampled_from(ROPE_KEYS), JSON | KINDS | st.floats(0.1, 100), max_size=6),
)
def test_any_json_is_read_or_refused(changes, rope):
    values = {**BASE, **({} if rope is None else {"rope_parameters": rope}), **changes}
    try:
        config = LlamaConfig.read(Keys.of_json(values, "config.json"))
    except UnsupportedModel:
        return
    assert len(config.sha256()) == 64


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(
            [*LLAMA_GGUF, "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear"]
        ),
        st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=4)
        | st.sampled_from([np.arange(3), np.zeros(0, np.float32), (), "linear", "yarn"]),
        max_size=4,
    )
)
def test_any_metadata_is_read_or_refused(changes):
    values = {**LLAMA_GGUF, **changes, "general.architecture": "llama"}
    try:
        config = LlamaConfig.read(Keys.of_gguf(values, {}, "a.gguf"))
    except UnsupportedModel:
        return
    assert len(config.sha256()) == 64
