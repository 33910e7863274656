"""A family that the package does not bring, from a user's file: a model runs on it, and what may be wrong is named."""

import json
from pathlib import Path

import pytest
import torch
from tests.parity import oracles
from transformers import CohereConfig, CohereForCausalLM

from treadle.cli.main import main
from treadle.errors import InvalidRequest, UnsupportedModel
from treadle.inference.llm import LLM
from treadle.models.checkpoint import open_checkpoint
from treadle.models.registry import HF_FAMILIES

COHERE = Path(__file__).parents[2] / "examples" / "families" / "cohere.py"
IDS = [(7 * i * i + 3 * i) % 300 for i in range(60)]


def seeded(config):
    torch.manual_seed(11)
    model = CohereForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_((1.0 if "norm" in name else 0.0) + 0.3 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = CohereConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attention_bias=True,
    )
    model = seeded(config)
    path = tmp_path_factory.mktemp("cohere")
    model.save_pretrained(path)
    return path, oracles.logits(model, IDS)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_family_from_a_file_runs_as_transformers_does(backend, checkpoint):
    path, expected = checkpoint
    assert "cohere" not in HF_FAMILIES
    with LLM(path, backend=backend, numerics="exact", max_num_seqs=1, family_file=str(COHERE)) as llm:
        assert oracles.relative_error(llm.logits(IDS), expected) < 1e-4


def test_the_command_line_takes_it_too(checkpoint, capsys):
    path, _ = checkpoint
    assert main(["plan", str(path), "--family-file", str(COHERE), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["model_type"] == "cohere"
    assert main(["plan", str(path)]) == 1
    assert "'cohere' is not supported" in capsys.readouterr().err


def test_a_family_file_is_for_its_own_models_only(tiny_checkpoint):
    with pytest.raises(UnsupportedModel, match=r"model_type: 'llama'; the family file is for 'cohere'"):
        open_checkpoint(tiny_checkpoint("llama"), family_file=COHERE)


def test_a_family_file_reads_gguf_of_the_architecture_that_it_names(tmp_path, tiny_gguf, tiny_checkpoint):
    text = "from treadle.models.families.llama import FAMILY"
    path = tmp_path / "mine.py"
    path.write_text(text)
    same = open_checkpoint(tiny_gguf("llama", "F32"), family_file=path).compile()
    assert same == open_checkpoint(tiny_checkpoint("llama")).compile()
    with pytest.raises(UnsupportedModel, match=r"general.architecture: 'llama'; the family file is for None"):
        open_checkpoint(tiny_gguf("llama", "F32"), family_file=COHERE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "defines no FAMILY"),
        ("FAMILY = 3\n", "defines no FAMILY"),
        ("x = 1\nif x\n", r"line 2: SyntaxError"),
        ("x = 1\n\nraise ValueError('no')\n", r"line 3: ValueError: no"),
        ("import nowhere_to_be_found\n", r"line 1: ModuleNotFoundError"),
    ],
)
def test_a_broken_family_file_is_named_with_its_line(text, message, tmp_path, tiny_checkpoint):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=message) as caught:
        open_checkpoint(tiny_checkpoint("llama"), family_file=path)
    assert str(path) in str(caught.value)


def test_a_missing_family_file_is_an_error(tmp_path, tiny_checkpoint):
    for name in ("none.py", "none.txt"):
        with pytest.raises(InvalidRequest, match="none"):
            open_checkpoint(tiny_checkpoint("llama"), family_file=tmp_path / name)


def test_a_family_file_that_says_no_norm_is_told_so(tmp_path, tiny_checkpoint):
    path = tmp_path / "bare.py"
    path.write_text(
        "import dataclasses\n"
        "from treadle.models.decoder import BaseDecoderConfig\n"
        "from treadle.models.registry import Family\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Bare(BaseDecoderConfig):\n"
        "    MODEL_TYPE = 'llama'\n"
        "    ARCHITECTURES = ('LlamaForCausalLM',)\n"
        "    IGNORED = frozenset({'rms_norm_eps', 'attention_bias', 'mlp_bias'})\n"
        "FAMILY = Family(Bare, lambda config: config.norm)\n"
    )
    with pytest.raises(UnsupportedModel, match="llama: Bare says no norm; define the property `norm`"):
        open_checkpoint(tiny_checkpoint("llama"), family_file=path)
