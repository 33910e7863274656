"""The same weights through both doors: one config, one plan, bit-identical logits."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
import transformers
from tests import gguf_export, tiny
from transformers import PreTrainedModel

from treadle.inference.llm import LLM
from treadle.models.checkpoint import open_checkpoint

LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
}
CASES = {
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2-tied-yarn": (
        "Qwen2ForCausalLM",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 24}),
    "qwen3-bias": ("Qwen3ForCausalLM", {"head_dim": 16, "attention_bias": True}),
    "gemma": ("GemmaForCausalLM", {"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 24, "tie_word_embeddings": True},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 24,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        },
    ),
    "phi": ("PhiForCausalLM", {"num_key_value_heads": 4}),
    "phi3": ("Phi3ForCausalLM", {"sliding_window": 24}),
    "phi3-longrope": (
        "Phi3ForCausalLM",
        {
            "max_position_embeddings": 2048,
            "original_max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
                "long_factor": [2.0, 2.1, 3.2, 4.3, 5.4, 6.5, 7.6, 8.7],
            },
        },
    ),
    "granite": (
        "GraniteForCausalLM",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.3,
            "logits_scaling": 4.0,
            "attention_bias": True,
        },
    ),
    "olmo": ("OlmoForCausalLM", {"clip_qkv": 0.8}),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "stablelm": ("StableLmForCausalLM", {"use_qkv_bias": True}),
    "stablelm-norms": ("StableLmForCausalLM", {"qk_layernorm": True, "use_parallel_residual": True}),
    "starcoder2": ("Starcoder2ForCausalLM", {"tie_word_embeddings": True}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4, "tie_word_embeddings": True}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2, "norm_topk_prob": True},
    ),
    "granitemoe": ("GraniteMoeForCausalLM", {"num_local_experts": 4, "embedding_multiplier": 3.0}),
    "olmoe": ("OlmoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}),
    "gpt_oss": (
        "GptOssForCausalLM",
        {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24},
    ),
    "deepseek_v2": ("DeepseekV2ForCausalLM", {**LATENT, "q_lora_rank": None, "num_experts_per_tok": 2}),
    "deepseek_v2-yarn": (
        "DeepseekV2ForCausalLM",
        {
            **LATENT,
            "q_lora_rank": 24,
            "num_experts_per_tok": 2,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
        },
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {**LATENT, "q_lora_rank": 24, "n_group": 4, "topk_group": 2}),
    "smollm3": ("SmolLM3ForCausalLM", {"num_hidden_layers": 5, "attention_bias": True}),
    "seed_oss": ("SeedOssForCausalLM", {"head_dim": 24}),
    "arcee": ("ArceeForCausalLM", {}),
    "ernie4_5": ("Ernie4_5ForCausalLM", {"head_dim": 24}),
    "glm4": ("Glm4ForCausalLM", {"head_dim": 24}),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        {
            "head_dim": 24,
            "use_qk_norm": True,
            "n_routed_experts": 8,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 32,
        },
    ),
    "exaone4": ("Exaone4ForCausalLM", {"num_hidden_layers": 5, "sliding_window": 24}),
    "exaone4-full": ("Exaone4ForCausalLM", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "gpt_neox": ("GPTNeoXForCausalLM", {}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64}),
}
IDS = list(range(3, 67))


def model_of(class_name: str, changes: dict[str, object]) -> PreTrainedModel:
    """Seeded, with weights large enough that an error shows."""
    cls = getattr(transformers, class_name)
    known = {
        key: value for key, value in tiny.COMMON.items() if key in {field.name for field in fields(cls.config_class)}
    }
    made = cls._from_config(cls.config_class(**{**known, **changes}), dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.3 * noise if parameter.ndim == 1 else noise / parameter.shape[-1] ** 0.5)
    return made.eval()


@pytest.mark.parametrize("name", CASES)
def test_doors_agree(name, tmp_path):
    model = model_of(*CASES[name])
    directory = tmp_path / "hf"
    model.save_pretrained(directory)
    paths = (directory, gguf_export.export(model, tmp_path / "model.gguf"))
    configs = [open_checkpoint(path).config for path in paths]
    assert configs[0].sha256() == configs[1].sha256()
    plans = [open_checkpoint(path).compile() for path in paths]
    assert plans[0] == plans[1]
    found = []
    for path in paths:
        with LLM(path, numerics="exact", max_num_seqs=1) as llm:
            found.append(llm.logits(IDS))
    np.testing.assert_array_equal(found[0], found[1])
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(found[0] - expected).max() < 1e-4 * np.abs(expected).max()
