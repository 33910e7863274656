"""Gemma 3 270M as released (GGUF, K-quants): logits and tokens against transformers on weights that gguf-py decodes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tests.parity import oracles
from tests.parity.prose import ENGLISH, MIXED
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from treadle import SamplingParams
from treadle.formats.gguf import GGUFFile
from treadle.inference.llm import LLM

POSITIONS = 256
ANSWER = 24


@pytest.fixture(scope="module")
def oracle(gemma3: Path) -> PreTrainedModel:
    """Sizes and values of the file in transformers' own model, in f32. (gguf-py takes long to read the vocabulary.)"""
    file = GGUFFile.open(gemma3)

    def number(key: str) -> float:
        return file.metadata[f"gemma3.{key}"]

    config = Gemma3TextConfig(
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        hidden_size=number("embedding_length"),
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv"),
        head_dim=number("attention.key_length"),
        sliding_window=number("attention.sliding_window"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=number("context_length"),
    )
    with torch.device("meta"):
        model = Gemma3ForCausalLM._from_config(config, attn_implementation="eager")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    model = model.to_empty(device="cpu").float()
    for key, value in model.state_dict().items():
        if key == "lm_head.weight":
            continue
        name = names.get_name(key, try_suffixes=(".weight",))
        kind = gguf.GGMLQuantizationType[file.tensors[name].dtype.upper()]
        rows = np.asarray(file.raw(name)).reshape(value.shape[0], -1) if value.ndim == 2 else file.raw(name)
        values = gguf.quants.dequantize(rows.view(np.float32) if kind == kind.F32 else rows, kind)
        value.copy_(torch.from_numpy(np.array(values)) - (1 if key.endswith("norm.weight") else 0))
    model.tie_weights()
    fresh = type(model.model.rotary_emb)(config)  # its buffers are no weights
    model.model.rotary_emb = fresh
    model.model.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5)
    return model.eval()


@pytest.mark.parametrize("text", [ENGLISH, MIXED], ids=["english", "mixed"])
def test_logits(text: str, gemma3: Path, oracle: PreTrainedModel) -> None:
    found = {}
    for numerics in ("exact", "fast"):
        with LLM(gemma3, numerics=numerics, max_num_logits=POSITIONS, max_num_seqs=1) as llm:
            ids = llm.encode(text)[:POSITIONS]
            found[numerics] = llm.logits(ids)
    expected = oracles.logits(oracle, ids)
    assert len(ids) == POSITIONS
    assert oracles.relative_error(found["exact"], expected) < 1e-4
    assert np.mean(found["fast"].argmax(axis=1) == expected.argmax(axis=1)) >= 0.96
    assert abs(oracles.perplexity(found["fast"], ids) / oracles.perplexity(expected, ids) - 1) <= 0.01


def test_text(gemma3: Path, oracle: PreTrainedModel) -> None:
    """Every token chosen is the oracle's, given those before it."""
    with LLM(gemma3, numerics="exact", max_num_seqs=1) as llm:
        prompt = llm.encode("The capital of France is")
        (output,) = llm.generate([{"prompt_token_ids": prompt}], SamplingParams(temperature=0, max_tokens=ANSWER))
    answer = list(output.outputs[0].token_ids)
    expected = oracles.logits(oracle, prompt + answer)[len(prompt) - 1 : -1].argmax(axis=1)
    assert answer == expected.tolist()
    assert output.outputs[0].text.startswith(" the capital of the country of France.")
