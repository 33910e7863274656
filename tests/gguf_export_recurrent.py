"""A transformers model with recurrent layers as a GGUF file, as llama.cpp's convert_hf_to_gguf.py would write it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import gguf
import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel

ARCHITECTURES: Mapping[str, gguf.MODEL_ARCH] = {
    "falcon_mamba": gguf.MODEL_ARCH.MAMBA,
    "granitemoehybrid": gguf.MODEL_ARCH.GRANITE_HYBRID,
    "jamba": gguf.MODEL_ARCH.JAMBA,
    "lfm2": gguf.MODEL_ARCH.LFM2,
    "lfm2_moe": gguf.MODEL_ARCH.LFM2MOE,
    "mamba": gguf.MODEL_ARCH.MAMBA,
    "mamba2": gguf.MODEL_ARCH.MAMBA2,
    "qwen3_next": gguf.MODEL_ARCH.QWEN3NEXT,
}
"""model_type -> architecture."""


def export(model: PreTrainedModel, path: Path) -> Path:
    """All tensors in f32; no tokenizer."""
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    _KEYS[config.model_type](writer, config)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for key, parameter in _experts_together(model.state_dict(), config):
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for changed, value in _changed(config, key, parameter):
            name = names.get_name(changed, try_suffixes=(".weight", ".bias")) or changed
            assert name.startswith(("blk.", "token_embd", "output")), f"no place for {changed}"
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _ssm(writer: gguf.GGUFWriter, conv: int, inner: int, state: int, rank: int, groups: int | None) -> None:
    writer.add_ssm_conv_kernel(conv)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    if groups is not None:
        writer.add_ssm_group_count(groups)


def _mamba(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_context_length(2**20)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    inner = config.expand * config.hidden_size
    if config.model_type == "mamba2":
        _ssm(writer, config.conv_kernel, inner, config.state_size, inner // config.head_dim, config.n_groups)
        return
    _ssm(writer, config.conv_kernel, inner, config.state_size, config.time_step_rank, None)
    writer.add_ssm_dt_b_c_rms(config.model_type == "falcon_mamba")


def _attending(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_feed_forward_length(_mlp_width(config))
    writer.add_head_count(config.num_attention_heads)
    full = [kind == "full_attention" for kind in config.layer_types]
    writer.add_head_count_kv([config.num_key_value_heads if attends else 0 for attends in full])
    eps = config.norm_eps if config.model_type.startswith("lfm2") else config.rms_norm_eps
    writer.add_layer_norm_rms_eps(eps)
    parameters = getattr(config, "rope_parameters", None)
    if parameters is not None:
        writer.add_rope_freq_base(parameters["rope_theta"])


def _mlp_width(config: PreTrainedConfig) -> int:
    """LFM2Model._add_feed_forward_length for LFM2, as stated for the others."""
    if not getattr(config, "block_auto_adjust_ff_dim", False):
        return config.intermediate_size
    size, unit = int(2 * config.intermediate_size / 3), config.block_multiple_of
    return unit * -(-int(config.block_ffn_dim_multiplier * size) // unit)


def _lfm2(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    _attending(writer, config)
    writer.add_shortconv_l_cache(config.conv_L_cache)


def _lfm2_moe(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    _lfm2(writer, config)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_leading_dense_block_count(config.num_dense_layers)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _jamba(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    _attending(writer, config)
    inner = config.mamba_expand * config.hidden_size
    _ssm(writer, config.mamba_d_conv, inner, config.mamba_d_state, config.mamba_dt_rank, None)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)


def _granite(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    _attending(writer, config)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)
    writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    inner = config.mamba_expand * config.hidden_size
    _ssm(writer, config.mamba_d_conv, inner, config.mamba_d_state, config.mamba_n_heads, config.mamba_n_groups)
    writer.add_rope_scaling_finetuned(config.position_embedding_type == "rope")


def _qwen3_next(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(int(config.head_dim * config.rope_parameters["partial_rotary_factor"]))
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    heads = config.linear_num_value_heads
    inner, groups = heads * config.linear_value_head_dim, config.linear_num_key_heads
    _ssm(writer, config.linear_conv_kernel_dim, inner, config.linear_key_head_dim, heads, groups)
    kinds = [*config.layer_types, "full_attention"]  # the first layer that attends, or the one after all
    writer.add_full_attention_interval(kinds.index("full_attention") + 1)


_KEYS: Mapping[str, Callable[[gguf.GGUFWriter, PreTrainedConfig], None]] = {
    "falcon_mamba": _mamba,
    "granitemoehybrid": _granite,
    "jamba": _jamba,
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2_moe,
    "mamba": _mamba,
    "mamba2": _mamba,
    "qwen3_next": _qwen3_next,
}


def _experts_together(state: Mapping[str, object], config: PreTrainedConfig) -> Iterable[tuple[str, np.ndarray]]:
    """transformers' fused experts as the converter's gate, up and down, each of all experts."""
    for key, parameter in state.items():
        value = parameter.numpy()  # type: ignore[attr-defined]
        if key.endswith(("experts.gate_up_proj", "block_sparse_moe.input_linear.weight")):
            for part, half in zip(("gate", "up"), np.split(value, 2, axis=1), strict=True):
                yield f"blk.{key.split('.')[2]}.ffn_{part}_exps.weight", half
        elif key.endswith(("experts.down_proj", "block_sparse_moe.output_linear.weight")):
            yield f"blk.{key.split('.')[2]}.ffn_down_exps.weight", value
        else:
            yield key, value


def _changed(config: PreTrainedConfig, key: str, value: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
    second = config.model_type in ("mamba2", "granitemoehybrid")
    if key.endswith((".A_log", ".D")):
        value = -np.exp(value) if key.endswith(".A_log") else value
        yield key, value.reshape(*value.shape, 1) if second else value
    elif key.endswith(".dt_bias"):
        yield key.replace(".dt_bias", ".dt_proj.bias"), value
    elif "conv" in key and value.ndim == 3:
        yield key, value[:, 0]
    elif second and key.endswith((".mixer.norm.weight", ".mamba.norm.weight")):
        groups = config.n_groups if config.model_type == "mamba2" else config.mamba_n_groups
        yield key, value.reshape(groups, -1)
    elif "shared_mlp.input_linear" in key:
        suffix = "_shexp" if config.num_local_experts else ""
        for part, half in zip(("gate", "up"), np.split(value, 2), strict=True):
            yield f"blk.{key.split('.')[2]}.ffn_{part}{suffix}.weight", half
    elif "shared_mlp.output_linear" in key:
        suffix = "_shexp" if config.num_local_experts else ""
        yield f"blk.{key.split('.')[2]}.ffn_down{suffix}.weight", value
    elif key.endswith(".expert_bias"):
        yield f"{key}.bias", value
    elif "block_sparse_moe.router" in key:
        yield key.replace("router.weight", "router.layer.weight"), value
    elif config.model_type == "granitemoehybrid" and ("q_proj" in key or "k_proj" in key):
        heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
        yield key, value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    elif config.model_type == "qwen3_next":
        yield from _of_qwen3_next(config, key, value)
    else:
        yield key, value


def _of_qwen3_next(config: PreTrainedConfig, key: str, value: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
    if "in_proj_qkvz" in key:
        k_dim, each = config.linear_key_head_dim, config.linear_num_value_heads // config.linear_num_key_heads
        values = each * config.linear_value_head_dim
        by_head = value.reshape(config.linear_num_key_heads, -1, value.shape[1])
        ends = [k_dim, 2 * k_dim, 2 * k_dim + values]
        q, k, v, z = (part.reshape(-1, value.shape[1]) for part in np.split(by_head, ends, axis=1))
        layer = key.split(".")[2]
        yield f"blk.{layer}.attn_qkv.weight", np.concatenate([q, k, v])
        yield f"blk.{layer}.attn_gate.weight", z
    elif key.endswith("norm.weight") and not key.endswith("linear_attn.norm.weight"):
        yield key, value + np.float32(1)
    elif key.endswith("shared_expert_gate.weight"):
        yield key, value[0]
    else:
        yield key, value
