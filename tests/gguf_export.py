"""A transformers model of any dense family as a GGUF file, as llama.cpp's convert_hf_to_gguf.py would write it.

gguf-py gives the names of tensors and keys; what the converter does to values is written down here family by family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel

Tensors = Iterable[tuple[str, np.ndarray]]

ARCHITECTURES: Mapping[str, gguf.MODEL_ARCH] = {
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""model_type -> architecture."""


def export(model: PreTrainedModel, path: Path) -> Path:
    """All tensors in f32; no tokenizer."""
    config, layers = model.config, model.config.num_hidden_layers
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _add_keys(writer, config)
    names = gguf.get_tensor_name_map(architecture, layers)
    change = _CHANGES.get(config.model_type, lambda config, key, value: [(key, value)])
    for key, parameter in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for changed, value in change(config, key, parameter.numpy()):
            name = names.get_name(changed, try_suffixes=(".weight", ".bias"))
            assert name is not None, f"{config.model_type} has no place for {changed}"
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """TextModel.set_gguf_parameters, then the family's own."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
    if (eps := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(eps)
    if (head_dim := getattr(config, "head_dim", None)) is not None:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    _KEYS.get(config.model_type, lambda writer, config: None)(writer, config)
    _add_rope(writer, getattr(config, "rope_parameters", None) or {})


def _add_rope(writer: gguf.GGUFWriter, parameters: Mapping[str, Any]) -> None:
    parameters = parameters.get("full_attention", parameters)
    if "rope_theta" in parameters:
        writer.add_rope_freq_base(parameters["rope_theta"])
    if parameters.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(parameters["rope_type"]))
        writer.add_rope_scaling_factor(parameters["factor"])
    if parameters.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])


def _gemma2_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def _gemma3_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma(config: PreTrainedConfig, key: str, value: np.ndarray) -> Tensors:
    yield key, value + np.float32(1) if key.endswith("norm.weight") else value


_KEYS: Mapping[str, Callable[[gguf.GGUFWriter, PreTrainedConfig], None]] = {
    "gemma2": _gemma2_keys,
    "gemma3_text": _gemma3_keys,
}
_CHANGES: Mapping[str, Callable[[PreTrainedConfig, str, np.ndarray], Tensors]] = {
    "gemma": _gemma,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
}
