"""StarCoder2: LayerNorms, a plain MLP with tanh GELU, biases everywhere, a window over the keys.

Lozhkov et al. 2024, arXiv:2402.19173. Reference: transformers' modeling_starcoder2.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.decoder import GGUF_HEAD, LayerNormDecoderConfig, decoder, pre_norm_layer
from treadle.models.registry import Family
from treadle.models.spec import Architecture, Op
from treadle.models.windows import every_layer
from treadle.plan.params import Activation

MLP: Final = blocks.plain_mlp_names("c_fc", "c_proj")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Starcoder2Config(LayerNormDecoderConfig):
    MODEL_TYPE: ClassVar[str] = "starcoder2"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Starcoder2ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "starcoder2"
    IGNORED: ClassVar[frozenset[str]] = frozenset({"residual_dropout"})

    num_key_value_heads: int = declare(gguf="attention.head_count_kv", bounds=(1, 4096))
    hidden_act: Activation = declare(Activation.GELU_TANH, choices=blocks.ACTIVATIONS)
    layer_norm_eps: float = declare(1e-5, hf="norm_epsilon", gguf="attention.layer_norm_epsilon", bounds=(0.0, 1.0))
    tie_word_embeddings: bool = declare(True, gguf_tensor=f"!{GGUF_HEAD}")
    use_bias: bool = declare(True, gguf_tensor="blk.0.attn_q.bias")
    windows: tuple[int, ...] = declare(reader=every_layer(None))


def architecture(config: Starcoder2Config) -> Architecture:
    biases = blocks.BIASES if config.use_bias else ()
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, config.use_bias, gated=False, names=MLP)

    def layer(window: int) -> tuple[Op, ...]:
        return pre_norm_layer(config, blocks.attention(config.attention_params(window), config.rope, biases), mlp)

    return decoder(config, tuple(layer(window) for window in config.windows))


FAMILY = Family(Starcoder2Config, architecture)
