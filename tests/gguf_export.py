"""A transformers model of any decoder family as a GGUF file, as llama.cpp's convert_hf_to_gguf.py would write it.

gguf-py gives the names of tensors and keys; what the converter does to values is written down here family by family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel

Tensors = Iterable[tuple[str, np.ndarray]]

ARCHITECTURES: Mapping[str, gguf.MODEL_ARCH] = {
    "bert": gguf.MODEL_ARCH.BERT,
    "modernbert": gguf.MODEL_ARCH.MODERN_BERT,
    "roberta": gguf.MODEL_ARCH.BERT,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
    "arcee": gguf.MODEL_ARCH.ARCEE,
    "ernie4_5": gguf.MODEL_ARCH.ERNIE4_5,
    "exaone4": gguf.MODEL_ARCH.EXAONE4,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "glm4": gguf.MODEL_ARCH.GLM4,
    "glm4_moe": gguf.MODEL_ARCH.GLM4_MOE,
    "seed_oss": gguf.MODEL_ARCH.SEED_OSS,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "gpt_neox": gguf.MODEL_ARCH.GPTNEOX,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "granitemoe": gguf.MODEL_ARCH.GRANITE_MOE,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "olmo": gguf.MODEL_ARCH.OLMO,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "phi": gguf.MODEL_ARCH.PHI2,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "stablelm": gguf.MODEL_ARCH.STABLELM,
    "starcoder2": gguf.MODEL_ARCH.STARCODER2,
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
    writer.add_context_length(config.max_position_embeddings - _first_position(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    latent = getattr(config, "kv_lora_rank", None)
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    writer.add_head_count_kv(kv_heads if latent is None else 1)
    if (eps := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(eps)
    for key in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if (eps := getattr(config, key, None)) is not None:
            writer.add_layer_norm_eps(eps)
    if (head_dim := getattr(config, "head_dim", None)) is not None:
        writer.add_key_length(head_dim if latent is None else latent + head_dim)
        writer.add_value_length(latent or head_dim)
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


def _exaone4_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


def _granite_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _expert_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    experts = getattr(config, "num_experts", None) or config.num_local_experts
    writer.add_expert_count(experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if (inner := getattr(config, "moe_intermediate_size", None)) is not None:
        writer.add_expert_feed_forward_length(inner)
    if (shared := getattr(config, "shared_expert_intermediate_size", None)) is not None:
        writer.add_expert_shared_feed_forward_length(shared)
    if (normalised := getattr(config, "norm_topk_prob", None)) is not None:
        writer.add_expert_weights_norm(normalised)


def _deepseek_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """DeepseekV2Model.set_gguf_parameters."""
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    _routed_keys(writer, config)
    if "mscale_all_dim" in config.rope_parameters:
        writer.add_rope_scaling_yarn_log_mul(0.1 * config.rope_parameters["mscale_all_dim"])


def _glm4_moe_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """Glm4MoeModel.set_gguf_parameters."""
    _partial_rope_keys(writer, config)
    _routed_keys(writer, config)


def _routed_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    sigmoid = config.model_type != "deepseek_v2"
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if sigmoid else gguf.ExpertGatingFuncType.SOFTMAX)
    if config.n_group is not None:
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)


def _granitemoe_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    _granite_keys(writer, config)
    _expert_keys(writer, config)


def _gpt_oss_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    _expert_keys(writer, config)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_sliding_window(config.sliding_window)


def _olmo_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_layer_norm_eps(1e-5)
    if config.clip_qkv is not None:
        writer.add_clamp_kqv(config.clip_qkv)


def _partial_rope_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(config.rope_parameters["partial_rotary_factor"] * head_dim))


def _phi3_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    _partial_rope_keys(writer, config)
    original = config.original_max_position_embeddings
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_sliding_window(config.sliding_window or 0)
    if "short_factor" in config.rope_parameters:
        scale = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
        for length in ("short", "long"):
            factors = np.array(config.rope_parameters[f"{length}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)


def _stablelm_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    _partial_rope_keys(writer, config)
    writer.add_parallel_residual(config.use_parallel_residual)


def _permuted(config: PreTrainedConfig, key: str, value: np.ndarray) -> Tensors:
    """LlamaModel.permute of the q and k rows."""
    for name, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if name in key:
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    yield key, value


def _experts(config: PreTrainedConfig, key: str, value: np.ndarray) -> Tensors:
    """Gate and up projection apart; a router of one column as a vector."""
    if key.endswith("experts.gate_up_proj"):
        for part, half in zip(("gate", "up"), np.split(value, 2, axis=1), strict=True):
            yield key.replace("gate_up_proj", f"{part}_proj.weight"), half
    elif key.endswith("experts.down_proj"):
        yield f"{key}.weight", value
    else:
        yield key, value.reshape(-1) if key.endswith("shared_expert_gate.weight") else value


def _deepseek(config: PreTrainedConfig, key: str, value: np.ndarray) -> Tensors:
    """kv_b_proj in two, each head's keys turned."""
    if "kv_b_proj" in key:
        of_heads = value.reshape(config.num_attention_heads, -1, config.kv_lora_rank)
        yield key.replace("kv_b_proj", "k_b_proj"), of_heads[:, : config.qk_nope_head_dim].swapaxes(1, 2)
        yield key.replace("kv_b_proj", "v_b_proj"), of_heads[:, config.qk_nope_head_dim :]
    elif key.endswith("e_score_correction_bias"):
        yield key.replace("e_score_correction_bias", "e_score_correction.bias"), value
    else:
        yield from _experts(config, key, value)


def _permuted_experts(config: PreTrainedConfig, key: str, value: np.ndarray) -> Tensors:
    for name, part in _experts(config, key.replace("block_sparse_moe.router", "mlp.gate"), value):
        yield from _permuted(config, name.replace("block_sparse_moe", "mlp"), part)


def _gpt_oss(config: PreTrainedConfig, key: str, value: np.ndarray) -> Tensors:
    """Experts' matrices turned round; the rows of gate and up, which take turns, apart."""
    if "mlp.experts" not in key:
        yield (f"{key}.weight" if key.endswith("sinks") else key), value
        return
    suffix = "bias" if key.endswith("_bias") else "weight"
    name, value = key.removesuffix("_bias"), value if suffix == "bias" else value.swapaxes(1, 2)
    if name.endswith("gate_up_proj"):
        for i, part in enumerate(("gate", "up")):
            yield f"{name.replace('gate_up', part)}.{suffix}", value[:, i::2]
    else:
        yield f"{name}.{suffix}", value


def _gpt_neox(config: PreTrainedConfig, key: str, value: np.ndarray) -> Tensors:
    """The three of each head become all of q, of k and of v."""
    if "query_key_value" in key:
        value = value.reshape(config.num_attention_heads, 3, -1, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)
    yield key, value


def _gpt2(config: PreTrainedConfig, key: str, value: np.ndarray) -> Tensors:
    turned = key.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    yield key, value.T if turned else value


def _stablelm(config: PreTrainedConfig, key: str, value: np.ndarray) -> Tensors:
    """Norms of heads are stacked; each call brings one, and the last one yields them all."""
    if "layernorm.norms" not in key:
        yield key, value
        return
    stem, head = key.removesuffix(".weight").split(".norms.")
    gains = _GAINS.setdefault(stem, [])
    gains.append(value)
    heads = config.num_attention_heads if "q_layernorm" in stem else config.num_key_value_heads
    if int(head) == heads - 1:
        yield f"{stem}.weight", np.stack(_GAINS.pop(stem))


_GAINS: dict[str, list[np.ndarray]] = {}


def _gemma(config: PreTrainedConfig, key: str, value: np.ndarray) -> Tensors:
    yield key, value + np.float32(1) if key.endswith("norm.weight") else value


def _bert_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_token_type_count(config.type_vocab_size)


def _modernbert_keys(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_sliding_window(config.local_attention)
    writer.add_sliding_window_pattern(3)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def _first_position(config: PreTrainedConfig) -> int:
    return config.pad_token_id + 1 if config.model_type == "roberta" else 0


def _bert(config: PreTrainedConfig, key: str, value: np.ndarray) -> Tensors:
    """Without the pooler; RoBERTa's positions begin behind the padding token's."""
    if "pooler" in key:
        return
    yield key, value[_first_position(config) :] if "position_embeddings" in key else value


_KEYS: Mapping[str, Callable[[gguf.GGUFWriter, PreTrainedConfig], None]] = {
    "bert": _bert_keys,
    "modernbert": _modernbert_keys,
    "roberta": _bert_keys,
    "deepseek_v2": _deepseek_keys,
    "deepseek_v3": _deepseek_keys,
    "exaone4": _exaone4_keys,
    "gemma2": _gemma2_keys,
    "gemma3_text": _gemma3_keys,
    "gpt_neox": _stablelm_keys,
    "gpt_oss": _gpt_oss_keys,
    "granite": _granite_keys,
    "granitemoe": _granitemoe_keys,
    "mixtral": _expert_keys,
    "glm4": _partial_rope_keys,
    "glm4_moe": _glm4_moe_keys,
    "olmo": _olmo_keys,
    "olmoe": _expert_keys,
    "phi": _partial_rope_keys,
    "phi3": _phi3_keys,
    "qwen2_moe": _expert_keys,
    "qwen3_moe": _expert_keys,
    "stablelm": _stablelm_keys,
}
_CHANGES: Mapping[str, Callable[[PreTrainedConfig, str, np.ndarray], Tensors]] = {
    "arcee": _permuted,
    "bert": _bert,
    "smollm3": _permuted,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "gemma": _gemma,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "glm4_moe": _deepseek,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gpt_oss": _gpt_oss,
    "granite": _permuted,
    "granitemoe": _permuted_experts,
    "mistral": _permuted,
    "mixtral": _permuted_experts,
    "olmo": _permuted,
    "olmoe": _experts,
    "qwen2_moe": _experts,
    "roberta": _bert,
    "qwen3_moe": _experts,
    "stablelm": _stablelm,
}
