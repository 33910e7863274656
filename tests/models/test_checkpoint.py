"""Checkpoints through both doors, and everything that is refused when one is opened and compiled."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from treadle.errors import InvalidFile, InvalidWeights, ModelNotFound, UnsupportedModel
from treadle.formats.gguf_writer import GGUFWriter
from treadle.formats.tensors import dequantise
from treadle.models.checkpoint import open_checkpoint
from treadle.plan.ir import DType

SAME = ["llama", "llama-tied", "llama-bias", "llama-mha", "llama-linear", "llama-llama3", "llama-yarn"]


def loaded(checkpoint, plans):
    return {b.name: checkpoint.weights.load(b) for b in plans.prefill.weight_bindings}


@pytest.mark.parametrize("name", SAME)
def test_both_doors_give_the_same_plan_and_bytes(name, tiny_checkpoint, tiny_gguf):
    one, other = open_checkpoint(tiny_checkpoint(name)), open_checkpoint(tiny_gguf(name, "F32"))
    plans = one.compile()
    assert one.config.sha256() == other.config.sha256()
    assert plans == other.compile()
    mine, theirs = loaded(one, plans), loaded(other, plans)
    assert mine.keys() == theirs.keys()
    for key, view in mine.items():
        assert (view.dtype, view.shape) == (theirs[key].dtype, theirs[key].shape)
        np.testing.assert_array_equal(view.data, theirs[key].data, err_msg=key)


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0", "Q4_1", "F16", "BF16"])
def test_quantised_rows_are_those_of_the_model(dtype, tiny_checkpoint, tiny_gguf):
    """The stored blocks, un-permuted, decode to what quantising the Hugging Face tensor gives."""
    from gguf import GGMLQuantizationType, quants

    one, other = open_checkpoint(tiny_checkpoint("llama")), open_checkpoint(tiny_gguf("llama", dtype))
    mine, theirs = loaded(one, one.compile()), loaded(other, other.compile())
    kind = GGMLQuantizationType[dtype]
    for key in ("layers.1.attention.q", "layers.1.attention.k", "layers.2.attention.v", "embedding.table"):
        view = theirs[key]
        assert view.dtype is DType[dtype]
        found = dequantise(np.ascontiguousarray(view.data).reshape(-1), dtype.lower(), view.shape)
        original = mine[key].data.view(np.float32)
        np.testing.assert_array_equal(found, quants.dequantize(quants.quantize(original, kind), kind), err_msg=key)


def test_weights_without_transform_are_views_of_the_map(tiny_checkpoint):
    checkpoint = open_checkpoint(tiny_checkpoint("llama"))
    bindings = {b.name: b for b in checkpoint.compile().prefill.weight_bindings}
    view = checkpoint.weights.load(bindings["layers.0.mlp.up"])
    assert np.shares_memory(view.data, checkpoint.tensors.raw("model.layers.0.mlp.up_proj.weight"))
    checkpoint.weights.release(bindings["layers.0.mlp.up"])
    assert view.data.any()


def edited(source, target, **config):
    """A copy of a checkpoint with changed config keys; returns it and its tensors, to be changed and saved."""
    shutil.copytree(source, target)
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **config}))
    return target, safetensors.numpy.load_file(target / "model.safetensors")


def refused(directory, tensors, error, message):
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    with pytest.raises(error, match=message) as refusal:
        open_checkpoint(directory).compile()
    assert directory.name in str(refusal.value)


def test_a_missing_tensor_is_refused(tiny_checkpoint, tmp_path):
    directory, tensors = edited(tiny_checkpoint("llama"), tmp_path / "m")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    refused(
        directory, tensors, InvalidWeights, r"'model.layers.1.mlp.up_proj.weight' is missing .weight layers.1.mlp.up"
    )


def test_a_misshaped_tensor_is_refused(tiny_checkpoint, tmp_path):
    directory, tensors = edited(tiny_checkpoint("llama"), tmp_path / "m")
    tensors["model.layers.2.self_attn.k_proj.weight"] = np.zeros((48, 64), np.float32)
    refused(directory, tensors, InvalidWeights, r"layers.2.attention.k: expected shape \[32, 64\], found .*\[48, 64\]")


def test_a_transposed_tensor_is_refused(tiny_checkpoint, tmp_path):
    directory, tensors = edited(tiny_checkpoint("llama"), tmp_path / "m")
    up = tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ascontiguousarray(up.T)
    refused(directory, tensors, InvalidWeights, r"layers.0.mlp.up: expected shape \[96, 64\], found .*\[64, 96\]")


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.uint8])
def test_an_unsupported_tensor_type_is_refused(dtype, tiny_checkpoint, tmp_path):
    directory, tensors = edited(tiny_checkpoint("llama"), tmp_path / "m")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name].astype(dtype)
    refused(directory, tensors, UnsupportedModel, rf"'{name}' has type .*; supported: f32, f16, bf16, q4_0")


def test_a_tensor_without_a_place_is_refused(tiny_checkpoint, tmp_path):
    directory, tensors = edited(tiny_checkpoint("llama"), tmp_path / "m")
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)
    refused(directory, tensors, UnsupportedModel, "'model.layers.0.self_attn.q_norm.weight' has no place")


def test_biases_that_the_config_does_not_know_are_refused(tiny_checkpoint, tmp_path):
    directory, tensors = edited(tiny_checkpoint("llama-bias"), tmp_path / "m", attention_bias=False)
    refused(directory, tensors, UnsupportedModel, r"self_attn\.\w_proj\.bias' has no place")


def test_buffers_of_old_checkpoints_are_passed_over(tiny_checkpoint, tmp_path):
    directory, tensors = edited(tiny_checkpoint("llama-tied"), tmp_path / "m")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    assert open_checkpoint(directory).compile() == open_checkpoint(tiny_checkpoint("llama-tied")).compile()


def test_an_unknown_model_type_is_refused(tiny_checkpoint, tmp_path):
    directory, _ = edited(tiny_checkpoint("llama"), tmp_path / "m", model_type="qwen9")
    with pytest.raises(UnsupportedModel, match=r"config.json: model_type: 'qwen9' is not supported; known: .*llama, "):
        open_checkpoint(directory)


def test_an_unknown_gguf_architecture_is_refused(tmp_path):
    path = GGUFWriter("rwkv99").save(tmp_path / "a.gguf")
    with pytest.raises(
        UnsupportedModel, match=r"a.gguf: general.architecture: 'rwkv99' is not supported; known: .*llama, "
    ):
        open_checkpoint(path)


def test_a_gguf_tensor_type_that_is_not_read_is_refused(tiny_gguf, tmp_path):
    from treadle.formats.gguf import GGUFFile
    from treadle.formats.tensors import tensor_nbytes

    source = GGUFFile.open(tiny_gguf("llama", "F32"))
    writer = GGUFWriter("llama")
    for key, value in source.metadata.items():
        if key.startswith("llama."):
            writer.add(key, value)
    for name in source.names():
        info = source.info(name)
        if name == "blk.1.ffn_down.weight":
            writer.add_raw(name, np.zeros(tensor_nbytes("q8_1", info.shape), np.uint8), "q8_1", info.shape)
        else:
            writer.add_raw(name, source.raw(name), info.dtype, info.shape)
    path = writer.save(tmp_path / "a.gguf")
    with pytest.raises(UnsupportedModel, match=r"a.gguf: tensor 'blk.1.ffn_down.weight' has type q8_1; supported: f32"):
        open_checkpoint(path).compile()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ModelNotFound, match="nowhere"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidFile, match=r"config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"GGML" * 10)
    with pytest.raises(InvalidFile, match="magic"):
        open_checkpoint(tmp_path / "a.gguf")
