"""Mistral 7B and its successors: Llama with a sliding window over the keys and no biases.

Jiang et al. 2023, arXiv:2310.06825. Reference: transformers' modeling_mistral.py. GGUF files say "llama".
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models.config import declare
from treadle.models.families.llama import LlamaConfig, architecture
from treadle.models.registry import Family


@dataclasses.dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    MODEL_TYPE: ClassVar[str] = "mistral"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("MistralForCausalLM",)
    PLANNED_AS: ClassVar[str | None] = "llama"

    attention_bias: bool = declare(False, hf=None, gguf_tensor="blk.0.attn_q.bias")
    mlp_bias: bool = declare(False, hf=None, gguf_tensor="blk.0.ffn_up.bias")
    sliding_window: int | None = declare(4096, gguf="attention.sliding_window", bounds=(1, 1 << 30))


FAMILY = Family(MistralConfig, architecture)
