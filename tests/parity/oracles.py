"""What parity is measured against: transformers in f32, on weights that gguf-py decodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import torch
from tests.tiny import GGUF_NAMES
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel


def logits(model: PreTrainedModel, ids: list[int]) -> np.ndarray:
    """[positions, vocab], f32."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def llama_of_gguf(path: Path) -> PreTrainedModel:
    """LlamaForCausalLM with a GGUF file's values in f32: blocks decoded by gguf-py, q and k rows put back."""
    reader = gguf.GGUFReader(path)

    def number(key: str) -> float:
        return reader.fields[f"llama.{key}"].contents()

    tensors = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    config = LlamaConfig(
        vocab_size=int(number("vocab_size")),
        hidden_size=int(number("embedding_length")),
        intermediate_size=int(number("feed_forward_length")),
        num_hidden_layers=int(number("block_count")),
        num_attention_heads=int(number("attention.head_count")),
        num_key_value_heads=int(number("attention.head_count_kv")),
        max_position_embeddings=int(number("context_length")),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": number("rope.freq_base")},
        tie_word_embeddings="output.weight" not in tensors,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = {}
    for key in model.state_dict():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            state[key] = torch.from_numpy(np.array(tensors["token_embd.weight"]))
            continue
        value = np.array(tensors[gguf_name(key)], np.float32)
        if "q_proj" in key or "k_proj" in key:
            heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            value = value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        state[key] = torch.from_numpy(np.ascontiguousarray(value))
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are no weights
    return model.float().eval()


def gguf_name(key: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight."""
    stem, _, suffix = key.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[part]}.{suffix}"
    return f"{GGUF_NAMES[stem]}.{suffix}"


@contextmanager
def int8_inputs(model: PreTrainedModel) -> Iterator[None]:
    """The input of every matrix is rounded as fast numerics does it: int8, symmetric, a scale per 32."""

    def rounded(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        blocks = inputs[0].reshape(-1, 32)
        scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127
        return ((torch.round(blocks / scale) * scale).reshape(inputs[0].shape),)

    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    handles = [module.register_forward_pre_hook(rounded) for module in linears]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def bf16_operands(model: PreTrainedModel) -> Iterator[None]:
    """Both operands of every matrix product are rounded to bf16, as bf16 numerics do it; sums stay in f32."""

    def rounded(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0].to(torch.bfloat16).to(torch.float32),)

    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    weights = [module.weight for module in linears]
    handles = [module.register_forward_pre_hook(rounded) for module in linears]
    for module in linears:  # a new parameter: the embedding may share the old one, and is looked up as it is
        module.weight = torch.nn.Parameter(module.weight.data.to(torch.bfloat16).to(torch.float32))
    yield
    for handle in handles:
        handle.remove()
    for module, weight in zip(linears, weights, strict=True):
        module.weight = weight


def noise(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference, relative to that of the expected values."""
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """max |a - b| / max |b|."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def perplexity(values: np.ndarray, ids: list[int]) -> float:
    """exp of the mean negative log likelihood of ids[1:] under logits [len, vocab], in f64."""
    rows = values[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(rows).sum(axis=1))
    return float(np.exp(np.mean(log_total - rows[np.arange(len(rows)), ids[1:]])))
