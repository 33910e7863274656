"""What most decoders share: their config fields, and the program around their layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from treadle.models import blocks
from treadle.models.config import Config, Keys, convert, declare
from treadle.models.rope import Rope, read_rope
from treadle.models.spec import Architecture, Input, Op, Program, weight
from treadle.plan.ir import Container, DType, ModelFacts, Stage, Symbol
from treadle.plan.params import Activation, AttentionParams

GGUF_TABLE = "token_embd.weight"
GGUF_HEAD = "output.weight"


def read_vocab_size(keys: Keys, values: Mapping[str, Any]) -> int:
    """GGUF files may lack the key; the table's rows then tell."""
    found = keys.take("vocab_size")
    if found is None and keys.container is Container.GGUF and GGUF_TABLE in keys.tensors:
        found = keys.tensors[GGUF_TABLE].shape[0]
    return int(convert(keys, "vocab_size", found, int))


def read_head_dim(keys: Keys, values: Mapping[str, Any]) -> int:
    """Stated, or hidden_size / num_attention_heads. GGUF states keys and values apart; they must agree."""
    gguf = keys.container is Container.GGUF
    stated = keys.take("attention.key_length" if gguf else "head_dim")
    if stated is None:
        if values["hidden_size"] % values["num_attention_heads"]:
            keys.refuse("hidden_size", values["hidden_size"], f"a multiple of {values['num_attention_heads']} heads")
        stated = values["hidden_size"] // values["num_attention_heads"]
    head_dim = int(convert(keys, "head_dim", stated, int, (2, 1024)))
    if gguf and keys.take("attention.value_length") not in (None, head_dim):
        keys.refuse("attention.value_length", keys.take("attention.value_length"), f"{head_dim}, as for keys")
    return head_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(Config):
    """Fields of a decoder with rope and grouped-query attention, named as in transformers."""

    vocab_size: int = declare(reader=read_vocab_size)
    hidden_size: int = declare(gguf="embedding_length")
    intermediate_size: int = declare(gguf="feed_forward_length")
    num_hidden_layers: int = declare(gguf="block_count", bounds=(1, 1024))
    num_attention_heads: int = declare(gguf="attention.head_count", bounds=(1, 4096))
    num_key_value_heads: int = declare(
        lambda values: values["num_attention_heads"], gguf="attention.head_count_kv", bounds=(1, 4096)
    )
    head_dim: int = declare(reader=read_head_dim)
    max_position_embeddings: int = declare(gguf="context_length", bounds=(1, 1 << 30))
    hidden_act: Activation = declare(Activation.SILU, choices=blocks.ACTIVATIONS)
    rms_norm_eps: float = declare(gguf="attention.layer_norm_rms_epsilon", bounds=(0.0, 1.0))
    tie_word_embeddings: bool = declare(False, gguf_tensor=f"!{GGUF_HEAD}")
    rope: Rope = declare(reader=read_rope)

    def check(self, keys: Keys) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            keys.refuse("num_key_value_heads", self.num_key_value_heads, f"a divisor of {self.num_attention_heads}")
        if self.head_dim % 2:
            keys.refuse("head_dim", self.head_dim, "an even number")

    def facts(self) -> ModelFacts:
        return ModelFacts(
            model_type=self.MODEL_TYPE,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            max_positions=self.max_position_embeddings,
            layers=self.num_hidden_layers,
        )

    def attention_params(self, window: int | None = None) -> AttentionParams:
        """Causal grouped-query attention with this config's heads and rope, scaled by head_dim^-1/2."""
        return AttentionParams(
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            v_head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            window=window or 0,
            rotary_dim=self.rope.rotary_dim,
            rope_scale=self.rope.scale,
        )


def pre_norm_layer(config: DecoderConfig, attention: Op, mlp: Op) -> tuple[Op, ...]:
    """x += attention(rmsnorm(x)); x += mlp(rmsnorm(x))."""
    eps = config.rms_norm_eps
    return (
        blocks.rmsnorm(blocks.layer_norm_weight("attention_norm", "input_layernorm.weight", "attn_norm.weight"), eps),
        attention,
        blocks.residual(),
        blocks.rmsnorm(blocks.layer_norm_weight("mlp_norm", "post_attention_layernorm.weight", "ffn_norm.weight"), eps),
        mlp,
        blocks.residual(),
    )


def decoder(config: DecoderConfig, layers: tuple[tuple[Op, ...], ...]) -> Architecture:
    """Embedding, layers, final norm, head (tied or its own)."""
    vocab = config.vocab_size
    table = weight("embedding.table", "model.embed_tokens.weight", GGUF_TABLE)
    head = table if config.tie_word_embeddings else weight("lm_head.weight", "lm_head.weight", GGUF_HEAD)
    final_norm = weight("final_norm", "model.norm.weight", "output_norm.weight")
    program = Program(
        stages=(Stage.PREFILL, Stage.DECODE),
        inputs=(Input("ids", DType.I32, (Symbol.ROWS,)),),
        prologue=(blocks.embedding(vocab, config.hidden_size, table),),
        layers=layers,
        epilogue=(blocks.rmsnorm(final_norm, config.rms_norm_eps), blocks.lm_head(vocab, head)),
        outputs=("logits",),
    )
    # Old checkpoints carry the frequencies as buffers; tied ones may carry the table twice.
    unused = ("*.rotary_emb.inv_freq", *(("lm_head.weight",) if config.tie_word_embeddings else ()))
    return Architecture(config.facts(), (program,), unused)
