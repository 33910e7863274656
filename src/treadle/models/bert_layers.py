"""BERT's embeddings, post-norm layers and head, which RoBERTa has too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from treadle.models import blocks
from treadle.models.blocks import GGUF_LAYER, Norm, SlotNames
from treadle.models.config import Keys, convert, declare
from treadle.models.encoder import EncoderConfig, encoder, pool, reading
from treadle.models.spec import Architecture, Op, WeightSpec, weight
from treadle.plan.ir import Container
from treadle.plan.params import Activation, EmbeddingParams

_PROJECTIONS: Final = {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"}
ATTENTION: Final[SlotNames] = {
    slot + suffix: (f"attention.{name}.{kind}", f"attn_{'output' if slot == 'o' else slot}.{kind}")
    for slot, name in _PROJECTIONS.items()
    for suffix, kind in (("", "weight"), ("_bias", "bias"))
}
MLP: Final[SlotNames] = blocks.plain_mlp_names("intermediate.dense", "output.dense")
GGUF_TYPES: Final = "token_types.weight"


def _read_types(keys: Keys, values: Mapping[str, Any]) -> int:
    if keys.container is Container.GGUF:
        return keys.tensors[GGUF_TYPES].shape[0] if GGUF_TYPES in keys.tensors else 0
    found = keys.take("type_vocab_size") if "type_vocab_size" in keys else 2
    return int(convert(keys, "type_vocab_size", found, int, (1, 1 << 16)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertLikeConfig(EncoderConfig):
    """Fields of BERT and RoBERTa."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"classifier_dropout", "tie_word_embeddings"})
    ONLY: ClassVar[Mapping[str, object]] = {"position_embedding_type": "absolute"}

    hidden_act: Activation = declare(Activation.GELU, choices=blocks.ACTIVATIONS)
    layer_norm_eps: float = declare(1e-12, gguf="attention.layer_norm_epsilon", bounds=(0.0, 1.0))
    type_vocab_size: int = declare(reader=_read_types)


def bert(
    config: BertLikeConfig,
    prefix: str,
    head: Mapping[str, WeightSpec],
    unused: tuple[str, ...],
    position_offset: int = 0,
) -> Architecture:
    """`prefix`: of the encoder's tensors. `position_offset`: row of the position table for position 0."""
    norm = Norm(eps=config.layer_norm_eps, centred=True, bias=True)
    hf = prefix + "encoder.layer.{layer}."
    attention = blocks.attention(config.attention_params(), None, blocks.BIASES, names=ATTENTION, hf=hf)
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, bias=True, gated=False, names=MLP, hf=hf)
    layer = (
        reading(attention, "x"),
        blocks.residual(),
        norm.op(
            "layers.{layer}.attention_norm",
            f"{hf}attention.output.LayerNorm",
            f"{GGUF_LAYER}attn_output_norm",
            writes="x",
        ),
        reading(mlp, "x"),
        blocks.residual(),
        norm.op("layers.{layer}.mlp_norm", f"{hf}output.LayerNorm", f"{GGUF_LAYER}layer_output_norm", writes="x"),
    )
    return encoder(
        config,
        config.facts(config.max_position_embeddings - position_offset),
        (
            _embedding(config, prefix, position_offset),
            norm.op("embedding_norm", f"{prefix}embeddings.LayerNorm", "token_embd_norm", writes="x"),
        ),
        (layer,) * config.num_hidden_layers,
        (pool(config, head),),
        (f"{prefix}embeddings.position_ids", *unused),
    )


def _embedding(config: BertLikeConfig, prefix: str, position_offset: int) -> Op:
    """Rows of the tables of words, positions and types. A single type needs no input."""

    def table(name: str, gguf: str) -> WeightSpec:
        return weight(f"embedding.{name}", f"{prefix}embeddings.{name}_embeddings.weight", gguf)

    weights = {"table": table("word", "token_embd.weight"), "positions": table("position", "position_embd.weight")}
    if config.type_vocab_size:
        weights["types"] = table("token_type", GGUF_TYPES)
    params = EmbeddingParams(
        config.vocab_size,
        max_positions=config.max_position_embeddings,
        position_offset=position_offset,
        types=config.type_vocab_size,
    )
    reads = ("ids", "types") if config.type_vocab_size > 1 else ("ids",)
    return Op(params, weights, reads, "x", {"hidden": config.hidden_size})
