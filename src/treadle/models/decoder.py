"""What most decoders share: their config fields, and the program around their layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from treadle.errors import UnsupportedModel
from treadle.models import blocks
from treadle.models.blocks import Norm
from treadle.models.config import Config, Keys, convert, declare
from treadle.models.rope import FREQUENCY_TENSOR, Rope, read_rope
from treadle.models.spec import Architecture, Input, Op, Program, WeightSpec, weight
from treadle.plan.ir import Container, DType, GeneratorKind, ModelFacts, Stage, Symbol
from treadle.plan.params import Activation, AttentionParams

GGUF_TABLE = "token_embd.weight"
GGUF_HEAD = "output.weight"
TABLE = weight("embedding.table", "model.embed_tokens.weight", GGUF_TABLE)


def read_vocab_size(keys: Keys, values: Mapping[str, Any]) -> int:
    """GGUF files may lack the key; the table's rows then tell."""
    found = keys.take("vocab_size")
    if found is None and keys.container is Container.GGUF and GGUF_TABLE in keys.tensors:
        found = keys.tensors[GGUF_TABLE].shape[0]
    return int(convert(keys, "vocab_size", found, int))


def head_dim_or(default: int) -> Callable[[Keys, Mapping[str, Any]], int]:
    """A reader of head_dim for families whose config.json means `default` where it has none."""
    return lambda keys, values: read_head_dim(keys, values, default)


def read_head_dim(keys: Keys, values: Mapping[str, Any], default: int | None = None) -> int:
    """Stated, or `default`, or hidden_size / heads. GGUF states keys and values apart; they must agree."""
    gguf = keys.container is Container.GGUF
    stated = keys.take("attention.key_length" if gguf else "head_dim")
    if stated is None and not gguf and "head_dim" not in keys:
        stated = default
    if stated is None:
        if values["hidden_size"] % values["num_attention_heads"]:
            keys.refuse("hidden_size", values["hidden_size"], f"a multiple of {values['num_attention_heads']} heads")
        stated = values["hidden_size"] // values["num_attention_heads"]
    head_dim = int(convert(keys, "head_dim", stated, int, (2, 1024)))
    if gguf and keys.take("attention.value_length") not in (None, head_dim):
        keys.refuse("attention.value_length", keys.take("attention.value_length"), f"{head_dim}, as for keys")
    return head_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseDecoderConfig(Config):
    """Fields of a decoder with grouped-query attention, named as in transformers."""

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
    tie_word_embeddings: bool = declare(False, gguf_tensor=f"!{GGUF_HEAD}")
    rope: Rope | None = declare(reader=read_rope)

    def check(self, keys: Keys) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            keys.refuse("num_key_value_heads", self.num_key_value_heads, f"a divisor of {self.num_attention_heads}")
        if self.rope is not None and self.rope.rotary_dim % 2:
            key = "head_dim" if "head_dim" in keys else "num_attention_heads"
            keys.refuse(key, getattr(self, key), f"an even number of rotated dims a head ({self.rope.rotary_dim} are)")

    @property
    def norm(self) -> Norm:
        """The norm before attention, MLP and head. Raises UnsupportedModel where a family's config does not say it."""
        raise UnsupportedModel(f"{self.MODEL_TYPE}: {type(self).__name__} says no norm; define the property `norm`")

    def facts(self) -> ModelFacts:
        reach = None if self.rope is None else self.rope.reach()
        return ModelFacts(
            model_type=self.planned_as(),
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            max_positions=min(self.max_position_embeddings, reach or self.max_position_embeddings),
            layers=self.num_hidden_layers,
        )

    def attention_params(self, window: int | None = None, *, rotates: bool = True, **changes: float) -> AttentionParams:
        """Causal grouped-query attention with this config's heads and rope, scaled by head_dim^-1/2; `changes`: other
        values of fields."""
        rope = self.rope if rotates else None
        params = AttentionParams(
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            v_head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            window=window or 0,
            rotary_dim=0 if rope is None else rope.rotary_dim,
            rope_scale=1.0 if rope is None else rope.scale,
        )
        return msgspec.structs.replace(params, **changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(BaseDecoderConfig):
    """A decoder with RMS norms."""

    rms_norm_eps: float = declare(gguf="attention.layer_norm_rms_epsilon", bounds=(0.0, 1.0))

    @property
    def norm(self) -> Norm:
        return Norm(eps=self.rms_norm_eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNormDecoderConfig(BaseDecoderConfig):
    """A decoder with LayerNorms."""

    layer_norm_eps: float = declare(1e-5, gguf="attention.layer_norm_epsilon", bounds=(0.0, 1.0))

    @property
    def norm(self) -> Norm:
        return Norm(eps=self.layer_norm_eps, centred=True, bias=True)


class CausalConfig(Protocol):
    """What the program around a decoder's layers asks of its config."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def norm(self) -> Norm: ...
    @property
    def rope(self) -> Rope | None: ...
    def facts(self) -> ModelFacts: ...


def pre_norm_layer(
    config: BaseDecoderConfig, attention: Op, mlp: Op, residual_scale: float = 1.0, gguf_mlp_norm: str = "ffn_norm"
) -> tuple[Op, ...]:
    """x += attention(norm(x)); x += mlp(norm(x)); what is added may be scaled."""
    return (
        config.norm.of_layer("attention_norm", "input_layernorm", "attn_norm"),
        attention,
        blocks.residual(scale=residual_scale),
        config.norm.of_layer("mlp_norm", "post_attention_layernorm", gguf_mlp_norm),
        mlp,
        blocks.residual(scale=residual_scale),
    )


def parallel_layer(config: BaseDecoderConfig, attention: Op, mlp: Op) -> tuple[Op, ...]:
    """h = norm(x); x += attention(h) + mlp(h). The attention writes a, the MLP m."""
    norm = config.norm.of_layer("attention_norm", "input_layernorm", "attn_norm")
    return (norm, attention, mlp, blocks.residual(attention.writes), blocks.residual(mlp.writes))


def post_norm_layer(config: BaseDecoderConfig, attention: Op, mlp: Op) -> tuple[Op, ...]:
    """x += norm(attention(x)); x += norm(mlp(x))."""
    norm = config.norm
    return (
        attention,
        norm.of_layer("post_attention_norm", "post_attention_layernorm", "post_attention_norm", reads="h"),
        blocks.residual(),
        mlp,
        norm.of_layer("post_mlp_norm", "post_feedforward_layernorm", "post_ffw_norm", reads="h"),
        blocks.residual(),
    )


SANDWICH: Final = ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def sandwich_norm_layer(
    config: BaseDecoderConfig, attention: Op, mlp: Op, hf: tuple[str, str, str] = SANDWICH
) -> tuple[Op, ...]:
    """x += norm(attention(norm(x))); x += norm(mlp(norm(x))). `hf`: the names of all norms but the first."""
    norm, (behind_attention, before_mlp, behind_mlp) = config.norm, hf
    return (
        norm.of_layer("attention_norm", "input_layernorm", "attn_norm"),
        attention,
        norm.of_layer("post_attention_norm", behind_attention, "post_attention_norm", reads="h"),
        blocks.residual(),
        norm.of_layer("mlp_norm", before_mlp, "ffn_norm"),
        mlp,
        norm.of_layer("post_mlp_norm", behind_mlp, "post_ffw_norm", reads="h"),
        blocks.residual(),
    )


def decoder(
    config: CausalConfig,
    layers: tuple[tuple[Op, ...], ...],
    *,
    embedding_scale: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float = 0.0,
    head_bias: bool = False,
    table: WeightSpec = TABLE,
    positions: WeightSpec | None = None,
    final_norm: str = "model.norm",
    gguf_final_norm: str = "output_norm",
    hf_head: str = "lm_head.weight",
    unused: tuple[str, ...] = (),
) -> Architecture:
    """Embedding, layers, final norm, head (tied or its own). `final_norm`, `gguf_final_norm`, `hf_head`: tensors'
    names."""
    vocab, tied = config.vocab_size, config.tie_word_embeddings
    rows = config.max_position_embeddings if positions else 0
    head = table if tied else weight("lm_head.weight", hf_head, GGUF_HEAD)
    bias = weight("lm_head.bias", "lm_head.bias", "output.bias") if head_bias else None
    program = Program(
        stages=(Stage.PREFILL, Stage.DECODE),
        inputs=(Input("ids", DType.I32, (Symbol.ROWS,)),),
        prologue=(blocks.embedding(vocab, config.hidden_size, table, embedding_scale, positions, rows),),
        layers=layers,
        epilogue=(
            config.norm.op("final_norm", final_norm, gguf_final_norm),
            blocks.lm_head(vocab, head, logit_scale, logit_softcap, bias),
        ),
        outputs=("logits",),
    )
    # Old checkpoints carry the frequencies as buffers; tied ones may carry the table twice. Divisors that were
    # understood are generated.
    twice = (hf_head,) if tied else ()
    understood = config.rope is not None and config.rope.kind is GeneratorKind.ROPE_LLAMA3
    divisors = (FREQUENCY_TENSOR,) if understood else ()
    return Architecture(config.facts(), (program,), ("*.rotary_emb.inv_freq", *twice, *divisors, *unused))
