"""The compiler: golden dumps (reviewed like code), and what holds for every plan.

After a deliberate change: TREADLE_UPDATE_GOLDEN=1 pytest tests/models/test_compile.py, then read the diff.
"""

import os
from pathlib import Path

import msgspec
import pytest
from tests.configs import SMOLLM2

from treadle.errors import UnsupportedModel
from treadle.models.blocks import BIASES, PROJECTIONS
from treadle.models.compile import CompileOptions, compile_model
from treadle.models.config import Keys
from treadle.models.registry import family_of_json
from treadle.models.spec import Architecture, Op, WeightSpec, weight
from treadle.plan.codec import decode, encode
from treadle.plan.dump import text
from treadle.plan.ir import NO_WEIGHT, DType, Lifecycle, Opcode
from treadle.plan.ops import OPS
from treadle.plan.params import (
    AttentionParams,
    ResidualAddParams,
    RMSNormParams,
    ShortConvParams,
    SwiGLUParams,
    unpack,
)

ENCODERS = ("bert-tiny", "bert-tiny-reranker", "roberta-tiny", "modernbert-tiny")
GOLDEN = Path(__file__).parents[1] / "golden"
TINY = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
ENCODER = {key: value for key, value in TINY.items() if key not in ("num_key_value_heads", "rms_norm_eps")}
LAYER_NORM = {key: value for key, value in TINY.items() if key != "rms_norm_eps"}
SSM = {"vocab_size": 320, "hidden_size": 64, "state_size": 16, "num_hidden_layers": 2}
LLAMA3 = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
CONFIGS = {
    "llama-tiny": {"model_type": "llama", **TINY},
    "llama-tiny-bias-llama3": {"model_type": "llama", **TINY, **LLAMA3, "attention_bias": True, "mlp_bias": True},
    "mistral-tiny": {"model_type": "mistral", **TINY, "sliding_window": 24},
    "smollm2": SMOLLM2,
    "bert-tiny": {"model_type": "bert", **ENCODER},
    "bert-tiny-reranker": {
        "model_type": "bert",
        **ENCODER,
        "architectures": ["BertForSequenceClassification"],
        "num_labels": 1,
    },
    "roberta-tiny": {"model_type": "roberta", **ENCODER, "type_vocab_size": 1},
    "modernbert-tiny": {"model_type": "modernbert", **ENCODER, "local_attention": 24},
    "qwen2-tiny": {
        "model_type": "qwen2",
        **TINY,
        "use_sliding_window": True,
        "sliding_window": 24,
        "max_window_layers": 2,
    },
    "qwen3-tiny": {"model_type": "qwen3", **TINY, "head_dim": 24},
    "gemma-tiny": {"model_type": "gemma", **TINY, "head_dim": 32},
    "gemma2-tiny": {"model_type": "gemma2", **TINY, "head_dim": 32, "sliding_window": 24},
    "gemma3-tiny": {"model_type": "gemma3_text", **TINY, "head_dim": 32, "sliding_window": 24, "num_hidden_layers": 6},
    "granite-tiny": {"model_type": "granite", **TINY, "residual_multiplier": 0.3, "logits_scaling": 4.0},
    "gpt2-tiny": {
        "model_type": "gpt2",
        "vocab_size": 320,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 512,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "olmo-tiny": {"model_type": "olmo", **LAYER_NORM, "clip_qkv": 8.0},
    "olmo2-tiny": {"model_type": "olmo2", **TINY},
    "phi-tiny": {"model_type": "phi", **LAYER_NORM},
    "phi3-tiny": {"model_type": "phi3", **TINY, "sliding_window": 24},
    "stablelm-tiny": {"model_type": "stablelm", **LAYER_NORM, "qk_layernorm": True},
    "starcoder2-tiny": {"model_type": "starcoder2", **LAYER_NORM},
    "lfm2-tiny": {
        "model_type": "lfm2",
        **LAYER_NORM,
        "norm_eps": 1e-5,
        "conv_bias": True,
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "jamba-tiny": {"model_type": "jamba", **TINY, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 4},
    "granitemoehybrid-tiny": {
        "model_type": "granitemoehybrid",
        **TINY,
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 4,
        "mamba_n_heads": 4,
    },
    "qwen3_next-tiny": {
        "model_type": "qwen3_next",
        **TINY,
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "mlp_only_layers": [0],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "mamba-tiny": {"model_type": "mamba", **SSM},
    "falcon_mamba-tiny": {"model_type": "falcon_mamba", **SSM},
    "mamba2-tiny": {"model_type": "mamba2", **SSM, "num_heads": 4, "head_dim": 32, "n_groups": 2},
}


def architecture(values) -> tuple[Architecture, str]:
    family = family_of_json(values["model_type"], "config.json")
    config = family.config.read(Keys.of_json(values, "config.json"))
    return family.architecture(config), config.sha256()


def compiled(name, **options):
    return compile_model(*architecture(CONFIGS[name]), CompileOptions(**options))


@pytest.mark.parametrize("name", CONFIGS)
def test_golden(name):
    path = GOLDEN / f"{name}.plan.txt"
    found = text(compiled(name))
    if os.environ.get("TREADLE_UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text(), f"{path} differs"


@pytest.mark.parametrize("name", CONFIGS)
def test_plans_survive_the_codec(name):
    plans = compiled(name)
    assert decode(encode(plans)) == plans


def attention_of(plans):
    block = next(b for b in plans.prefill.param_blocks if b.opcode is Opcode.MULTIHEAD_ATTENTION)
    params = unpack(block)
    assert isinstance(params, AttentionParams)
    return params


@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_and_decode_are_one_program(name):
    plans = compiled(name)
    if name in ENCODERS:
        assert plans.stages() == (plans.encode,)
        return
    assert plans.prefill is not None and plans.decode is not None
    assert msgspec.structs.replace(plans.prefill, stage=plans.decode.stage) == plans.decode


def test_kv_dtype_and_page_tokens_make_the_state():
    for dtype, width in ((DType.F32, 4), (DType.F16, 2), (DType.BF16, 2)):
        for tokens in (16, 64):
            plans = compiled("llama-tiny", kv_dtype=dtype, page_tokens=tokens)
            assert attention_of(plans).kv_dtype == dtype
            states = plans.prefill.plan.state_descs
            assert [state.id for state in states] == [0, 1, 2]
            for state in states:
                assert state.size_bytes == tokens * 2 * (16 + 16) * width
                assert (state.align_bytes, state.page_tokens) == (64, tokens)
                assert state.lifecycle is Lifecycle.SLOT_PERSISTENT
                assert not state.zero_init


def test_q8_0_keys_take_34_bytes_for_32_elements():
    plans = compiled("smollm2", kv_dtype=DType.Q8_0)
    assert {state.size_bytes for state in plans.prefill.plan.state_descs} == {64 * 3 * (64 + 64) // 32 * 34}
    with pytest.raises(UnsupportedModel, match=r"layer 0: kv_dtype q8_0 .* head_dim 16 and v_head_dim 16 .*; use f16"):
        compiled("llama-tiny", kv_dtype=DType.Q8_0)


def test_the_window_is_in_the_params():
    assert attention_of(compiled("mistral-tiny")).window == 24
    assert attention_of(compiled("llama-tiny")).window == 0


def test_a_tied_head_is_the_table():
    plan = compiled("smollm2").prefill
    first, last = plan.plan.instructions[0], plan.plan.instructions[-1]
    assert (first.opcode, last.opcode) == (Opcode.EMBEDDING, Opcode.LM_HEAD)
    assert last.weights[0] == first.weights[0]
    own = compiled("llama-tiny").prefill
    assert own.plan.instructions[-1].weights[0] != own.plan.instructions[0].weights[0]


def test_slots_are_those_of_the_op_table():
    plan = compiled("llama-tiny-bias-llama3").prefill
    names = [binding.name for binding in plan.weight_bindings]
    instruction = plan.plan.instructions[2]
    spec = OPS[Opcode.MULTIHEAD_ATTENTION]
    found = {
        slot.name: names[index]
        for slot, index in zip(spec.weights, instruction.weights, strict=True)
        if index != NO_WEIGHT
    }
    expected = {slot: f"layers.0.attention.{slot}" for slot in (*PROJECTIONS, *BIASES)}
    assert found == {**expected, "rope_inv_freq": "rope.inv_freq"}


def test_the_frequencies_are_shared():
    bindings = compiled("smollm2").prefill.weight_bindings
    assert [b.name for b in bindings if b.generator is not None] == ["rope.inv_freq"]


def test_compiling_smollm2_is_quick():
    import time

    began = time.perf_counter()
    compiled("smollm2")
    assert time.perf_counter() - began < 2.0


def with_layers(*layers):
    """A tiny llama with other layers, compiled."""
    base, config_hash = architecture(CONFIGS["llama-tiny"])
    program = msgspec.structs.replace(base.programs[0], layers=layers)
    return compile_model(msgspec.structs.replace(base, programs=(program,)), config_hash, CompileOptions())


def named(*slots):
    return {
        slot: weight(f"layers.{{layer}}.{slot}", f"hf.{{layer}}.{slot}", f"gguf.{{layer}}.{slot}") for slot in slots
    }


def norm(writes, reads="x", name="norm"):
    return Op(RMSNormParams(1e-5), {"gain": named(name)[name]}, (reads,), writes)


def test_the_language_says_parallel_and_sandwich_layers():
    """x + attention(norm x) + norm(mlp(norm x)), all from one norm: four values live at once."""
    attention = Op(AttentionParams(4, 2, 16, 16, 0.25), named("q", "k", "v", "o"), ("h",), "a")
    mlp = Op(SwiGLUParams(8, gated=0), named("up", "down"), ("h",), "m")
    layer = (
        norm("h"),
        attention,
        mlp,
        norm("m", "m", "post"),
        Op(ResidualAddParams(), reads=("x", "a")),
        Op(ResidualAddParams(0.5), reads=("x", "m")),
    )
    plan = with_layers(layer).prefill
    first = plan.plan.instructions[1:7]
    table, h, a, m, post = first[0].inputs[0], *(i.outputs[0] for i in first[:4])
    assert [i.inputs for i in first] == [(table,), (h,), (h,), (m,), (table, a), (first[4].outputs[0], post)]
    assert plan.peak_registers == 4


def test_the_language_says_hybrids():
    """A layer that keeps one page of state for the slot's life beside one that pages its keys."""
    conv = Op(ShortConvParams(inner=64, conv_width=3), named("in", "conv", "out"), ("h",), "h")
    attention = Op(AttentionParams(4, 2, 16, 16, 0.25), named("q", "k", "v", "o"), ("h",), "h")
    residual = Op(ResidualAddParams(), reads=("x", "h"))
    states = with_layers((norm("h"), conv, residual), (norm("h"), attention, residual)).prefill.plan.state_descs
    assert [(state.page_tokens, state.zero_init) for state in states] == [(0, True), (64, False)]
    assert states[0].size_bytes == 4 * 64 * 2


def changed(ops, message):
    """A tiny llama whose layers run `ops` must be refused with the message."""
    base, config_hash = architecture(CONFIGS["llama-tiny"])
    program = msgspec.structs.replace(base.programs[0], layers=(ops,))
    with pytest.raises(UnsupportedModel, match=message):
        compile_model(msgspec.structs.replace(base, programs=(program,)), config_hash, CompileOptions())


GAIN = weight("layers.{layer}.n", "hf.{layer}", "gguf.{layer}")


def test_an_architecture_that_contradicts_itself_is_refused():
    params = RMSNormParams(1e-5)
    changed((Op(params, {"gain": GAIN}, ("y",)),), "rmsnorm: reads 'y', which nothing before it writes")
    changed((Op(params, {"scale": GAIN}),), "rmsnorm: has no weight slot 'scale'")
    changed((Op(params, {"gain": GAIN}, sizes={"hidden": 65}),), "rmsnorm: x: shape .* does not fit")
    table = weight("embedding.table", "other", "other")
    changed((Op(params, {"gain": table}),), "weight embedding.table: two ops want it differently")
    changed((Op(params, {"gain": GAIN}, ("x", "x", "x")),), "rmsnorm: reads 3 values, takes 1")
    mlp = {slot: WeightSpec(slot) for slot in ("gate", "up", "down")}
    changed((Op(SwiGLUParams(8), {**mlp, "head": GAIN}),), "swiglu: has no weight slot 'head'")
