"""Seeded tiny checkpoints: saved by transformers as safetensors with a byte-level tokenizer, or exported as GGUF.

Their weights are those of the parity oracle (treadle.parity.oracle), but not rounded to its grid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, PreTrainedModel

from treadle.parity import oracle

VOCAB = 320
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a"), ("e", "r"), ("o", "n"), ("1", "2"))
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COMMON: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _llama(**changes: Any) -> PreTrainedConfig:
    return LlamaConfig(**{**COMMON, **changes})


def _mistral(**changes: Any) -> PreTrainedConfig:
    return MistralConfig(**{**COMMON, **changes})


def _rope(kind: str, **parameters: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


# Rows that are whole blocks of every quantised type.
WIDE: Mapping[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}

CONFIGS: Mapping[str, PreTrainedConfig] = {
    "llama": _llama(),
    "llama-tied": _llama(tie_word_embeddings=True),
    "llama-bias": _llama(attention_bias=True, mlp_bias=True),
    "llama-mha": _llama(num_key_value_heads=4, head_dim=32),
    "llama-linear": _llama(**_rope("linear", factor=4.0)),
    "llama-llama3": _llama(
        **_rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    ),
    "llama-yarn": _llama(**_rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "llama-wide": _llama(**WIDE),
    "llama-wide-tied": _llama(**WIDE, tie_word_embeddings=True),
    "mistral": _mistral(sliding_window=None),
    "mistral-window": _mistral(sliding_window=24),
}
"""Every variant that parity is shown for."""


def model(name: str) -> PreTrainedModel:
    """The seeded model in f32, evaluating."""
    found = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32, attn_implementation="eager")
    oracle.fill(found, sum(name.encode()), on_grid=False)
    return found.eval()


def save(name: str, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A Hugging Face directory: config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
    model(name).to(dtype).save_pretrained(directory)
    return add_tokenizer(directory)


def add_tokenizer(directory: Path) -> Path:
    """tokenizer.json and tokenizer_config.json."""
    tokenizer().save(str(directory / "tokenizer.json"))
    tokens = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[2], "pad_token": SPECIAL[0]}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE, **tokens}
    (directory / "tokenizer_config.json").write_text(json.dumps(described))
    return directory


def tokenizer() -> Tokenizer:
    """Byte-level BPE with a handful of merges."""
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary())}, merges=list(MERGES)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return made


def vocabulary() -> list[str]:
    """Specials, the 256 bytes as the byte-level alphabet writes them, merges; filled up with unused tokens."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    return tokens + [f"<|unused{i}|>" for i in range(VOCAB - len(tokens))]


def export_gguf(name: str, path: Path, dtype: str = "F32") -> Path:
    """The same model as llama.cpp's convert_hf_to_gguf.py and quantiser would write it, by gguf-py.

    `dtype` (a GGMLQuantizationType) is that of the matrices. Scalings that GGUF keeps elsewhere than transformers
    (llama3: a tensor of divisors) are written that way too.
    """
    config, weights = CONFIGS[name], model(name).state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_rope(writer, config)
    _add_tokenizer(writer)
    for key, value in weights.items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        _add_tensor(writer, config, key, value.numpy(), gguf.GGMLQuantizationType[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_rope(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    parameters = config.rope_parameters
    writer.add_rope_freq_base(parameters["rope_theta"])
    if parameters["rope_type"] == "llama3":
        divisors = llama3_divisors(config.head_dim, parameters)
        writer.add_tensor("rope_freqs.weight", divisors)
    elif parameters["rope_type"] != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(parameters["rope_type"]))
        writer.add_rope_scaling_factor(parameters["factor"])
        if "original_max_position_embeddings" in parameters:
            writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])


def llama3_divisors(dim: int, parameters: Mapping[str, Any]) -> np.ndarray:
    """What convert_hf_to_gguf.py stores for llama3 scaling: default frequency / scaled frequency, as f32."""
    factor, low, high = (parameters[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = parameters["original_max_position_embeddings"]
    divisors = []
    for i in range(0, dim, 2):
        wavelength = 2 * np.pi * parameters["rope_theta"] ** (i / dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary())
    control, normal, unused = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    kinds = [control if t in SPECIAL else unused if t.startswith("<|unused") else normal for t in vocabulary()]
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{a} {b}" for a, b in MERGES])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _add_tensor(
    writer: gguf.GGUFWriter, config: PreTrainedConfig, key: str, value: np.ndarray, dtype: gguf.GGMLQuantizationType
) -> None:
    stem, _, suffix = key.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        name = f"blk.{layer}.{GGUF_NAMES[part]}.{suffix}"
    else:
        part, name = "", f"{GGUF_NAMES[stem]}.{suffix}"
    if part in ("self_attn.q_proj", "self_attn.k_proj"):
        heads = config.num_attention_heads if part == "self_attn.q_proj" else config.num_key_value_heads
        value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    if value.ndim == 1 or dtype == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, np.ascontiguousarray(value))
    elif dtype.name in _SCALES_AT:
        writer.add_tensor(name, random_blocks(dtype, value), raw_dtype=dtype)
    else:
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(value), dtype), raw_dtype=dtype)


_SCALES_AT = {"Q2_K": 80, "Q3_K": 108, "Q4_K": 0, "Q5_K": 0, "Q6_K": 208, "IQ4_NL": 0, "IQ4_XS": 0}
"""Where a block of the types that gguf-py cannot encode keeps its f16 scale, and after it its minimum's."""
_MEAN_CODE = {"Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}
"""Of the types with a minimum: its scale is chosen so that weights are around zero."""


def random_blocks(dtype: gguf.GGMLQuantizationType, like: np.ndarray) -> np.ndarray:
    """Blocks of any codes and integer scales in place of a matrix, as large as its values are: u8 [rows, row bytes]."""
    elements, size = gguf.GGML_QUANT_SIZES[dtype]
    random = np.random.default_rng(sum(like.shape))
    blocks = random.integers(0, 256, (like.size // elements, size), dtype=np.uint8)

    def put_scales(d: np.ndarray) -> None:
        at = _SCALES_AT[dtype.name]
        blocks[:, at : at + 2] = d.astype("<f2").view(np.uint8)
        if dtype.name in _MEAN_CODE:
            blocks[:, at + 2 : at + 4] = (d * _MEAN_CODE[dtype.name]).astype("<f2").view(np.uint8)

    put_scales(np.ones((len(blocks), 1)))
    size_at_one = gguf.quants.dequantize(blocks, dtype).std()
    put_scales(random.uniform(0.5, 1.5, (len(blocks), 1)) * like.std() / size_at_one)
    return blocks.reshape(len(like), -1)
