"""A seeded llama checkpoint whose rows are whole blocks of every quantised type, written without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tests.tiny import CHAT_TEMPLATE, SPECIAL, VOCAB, tokenizer

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 256, 512, 2, 8, 2
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """f32 values by Hugging Face name; matrices scaled as trained ones are."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, cols: int) -> np.ndarray:
        return (random.standard_normal((rows, cols)) * 1.2 / cols**0.5).astype(np.float32)

    kv = KV_HEADS * HIDDEN // HEADS
    found = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN) * 8, "lm_head.weight": matrix(VOCAB, HIDDEN) * 8}
    found["model.norm.weight"] = (1 + 0.2 * random.standard_normal(HIDDEN)).astype(np.float32)
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        shapes = {"q": (HIDDEN, HIDDEN), "k": (kv, HIDDEN), "v": (kv, HIDDEN), "o": (HIDDEN, HIDDEN)}
        found |= {f"{at}self_attn.{name}_proj.weight": matrix(*shape) for name, shape in shapes.items()}
        found |= {f"{at}mlp.{name}_proj.weight": matrix(INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        found[f"{at}mlp.down_proj.weight"] = matrix(HIDDEN, INTERMEDIATE)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}{name}.weight"] = (1 + 0.2 * random.standard_normal(HIDDEN)).astype(np.float32)
    return found


def save(directory: Path, dtype: type = ml_dtypes.bfloat16, **changes: Any) -> Path:
    """A Hugging Face folder with its tensors as `dtype`; `changes` of the config."""
    directory.mkdir(exist_ok=True)
    save_file({name: value.astype(dtype) for name, value in tensors().items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    tokenizer().save(str(directory / "tokenizer.json"))
    described = {"chat_template": CHAT_TEMPLATE, "bos_token": SPECIAL[0], "eos_token": SPECIAL[2]}
    (directory / "tokenizer_config.json").write_text(json.dumps(described))
    return directory
