"""gpt-oss as it is published: experts stored as mxfp4 planes, against transformers on the decoded values."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny
from tests.parity.oracles import logits, noise, relative_error
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from treadle.errors import UnsupportedModel
from treadle.inference.llm import LLM
from treadle.models.checkpoint import open_checkpoint, read_config
from treadle.parity.oracle import fill
from treadle.plan.ir import DType

IDS = [(7 * i + i * i) % tiny.VOCAB for i in range(80)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(directory, the model that transformers would load from it)."""
    directory = tmp_path_factory.mktemp("gpt-oss")
    sizes = {"intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32, "sliding_window": 24}
    config = GptOssConfig(**{**tiny.COMMON, **sizes}, num_local_experts=4, num_experts_per_tok=2)
    model = GptOssForCausalLM._from_config(config, dtype=torch.float32, attn_implementation="eager")
    fill(model, 3)
    model.save_pretrained(directory)
    stored = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, cols, rows = stored.pop(name).shape
        codes = torch.randint(0, 256, (experts, rows, cols // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(121, 124, (experts, rows, cols // 32), generator=generator, dtype=torch.uint8)
        stored |= {f"{name}_blocks": codes, f"{name}_scales": scales}
        model.get_parameter(name).data = convert_moe_packed_tensors(codes, scales, dtype=torch.float32)
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    path = directory / "config.json"
    described = json.loads(path.read_text()) | {
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    }
    path.write_text(json.dumps(described))
    return directory, model.eval()


@pytest.mark.parametrize(("backend", "numerics"), [("reference", "exact"), ("cpu", "exact"), ("cpu", "fast")])
def test_logits(backend, numerics, checkpoint):
    directory, model = checkpoint
    expected = logits(model, IDS)
    with LLM(directory, backend=backend, numerics=numerics, max_num_seqs=1) as llm:
        found = llm.logits(IDS)
    if numerics == "exact":
        assert relative_error(found, expected) < 1e-4
    else:
        assert noise(found, expected) < 0.05


def test_experts_stay_mxfp4(checkpoint):
    opened = open_checkpoint(checkpoint[0])
    (plan, *_) = opened.compile().stages()
    kept = {b.name.rpartition(".")[2]: opened.weights.dtype(b) for b in plan.weight_bindings if ".moe." in b.name}
    assert {slot for slot, dtype in kept.items() if dtype is DType.MXFP4} == {"gate", "up", "down"}
    gate = next(b for b in plan.weight_bindings if b.name == "layers.0.moe.gate")
    stored = opened.tensors.raw("model.layers.0.mlp.experts.gate_up_proj").reshape(4, 128, -1)
    np.testing.assert_array_equal(opened.weights.load(gate).data, stored[:, ::2])


def test_another_quantisation_is_refused(checkpoint, tmp_path):
    described = json.loads((checkpoint[0] / "config.json").read_text())
    described["quantization_config"]["quant_method"] = "gptq"
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(UnsupportedModel, match=r"quantization_config: found .*gptq.*, supported: quant_method mxfp4"):
        read_config(tmp_path / "config.json")
