"""What encoders share: their config fields, what is made of a sequence's rows, and the program around their layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from treadle.models.config import Config, Keys, declare
from treadle.models.decoder import read_vocab_size
from treadle.models.spec import Architecture, Input, Names, Op, Program, WeightSpec
from treadle.plan.ir import Container, DType, ModelFacts, Stage, Symbol
from treadle.plan.params import Activation, AttentionParams, Pooling, PoolParams

CLASSIFIER: Final = "ForSequenceClassification"
ASSUMED_POOLING: Final = "pooling: the checkpoint does not say; the mean of the rows is taken"
SCORE_ACTIVATIONS: Final[Mapping[str, Activation]] = {
    f"torch.nn.{module}{name}": activation
    for module, name, activation in (
        ("modules.linear.", "Identity", Activation.IDENTITY),
        ("modules.activation.", "Sigmoid", Activation.SIGMOID),
        ("modules.activation.", "Tanh", Activation.TANH),
        ("", "Identity", Activation.IDENTITY),
        ("", "Sigmoid", Activation.SIGMOID),
        ("", "Tanh", Activation.TANH),
    )
}
"""What sentence-transformers' CrossEncoder writes for the activation of its scores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """What is made of a sequence's rows. `labels` 0: an embedding; else so many scores, behind `activation`."""

    pooling: Pooling = Pooling.MEAN
    normalise: bool = False
    labels: int = 0
    activation: Activation = Activation.IDENTITY
    assumed: bool = False
    """The checkpoint names no pooling."""


def read_head(keys: Keys, values: Mapping[str, Any]) -> Head:
    """By the class in `architectures` a classifier, or else an embedding as modules.json describes it.

    Without modules.json the mean of the rows, as sentence-transformers takes it. GGUF names the pooling; embeddings
    from there are of unit length, as llama.cpp returns them. Raises UnsupportedModel.
    """
    if keys.container is Container.GGUF:
        return _gguf_head(keys)
    if any(str(name).endswith(CLASSIFIER) for name in keys.take("architectures") or ()):
        labels = _labels(keys)
        return Head(pooling=Pooling.CLS, labels=labels, activation=_score_activation(keys, labels))
    sentence = keys.sentence
    if sentence is None:
        return Head(assumed=True)
    if sentence.width != values["hidden_size"]:
        keys.refuse("hidden_size", values["hidden_size"], f"{sentence.width}, as modules.json's pooling says")
    return Head(pooling=sentence.pooling, normalise=sentence.normalise)


def _gguf_head(keys: Keys) -> Head:
    if keys.take("attention.causal") is not False:
        keys.refuse("attention.causal", keys.take("attention.causal"), "false")
    heads = keys.take("attention.head_count_kv")
    if heads not in (None, keys.take("attention.head_count")):
        keys.refuse("attention.head_count_kv", heads, "as many as attention.head_count")
    kinds = {0: None, 1: Pooling.MEAN, 2: Pooling.CLS, 3: Pooling.LAST}
    found = keys.take("pooling_type")
    if found is not None and (type(found) is not int or found not in kinds):
        keys.refuse(
            "pooling_type", found, "0 (none), 1 (mean), 2 (cls), 3 (last); rank: use the safetensors checkpoint"
        )
    pooling = kinds[found or 0]
    return Head(pooling=pooling or Pooling.MEAN, normalise=True, assumed=pooling is None)


def _labels(keys: Keys) -> int:
    """As transformers counts them: id2label, else num_labels, else 2."""
    named, stated = keys.take("id2label"), keys.take("num_labels")
    if named is not None and (not isinstance(named, dict) or not named):
        keys.refuse("id2label", named, "an object with a name for each label")
    if stated is not None and (type(stated) is not int or not 1 <= stated <= 1 << 16):
        keys.refuse("num_labels", stated, "1 to 65536")
    if named is not None and stated is not None and len(named) != stated:
        keys.refuse("num_labels", stated, f"{len(named)}, as in id2label")
    return len(named) if named is not None else stated or 2


def _score_activation(keys: Keys, labels: int) -> Activation:
    """What the file says, else sigmoid for one label (CrossEncoder.get_default_activation_fn)."""
    described, older = keys.take("sentence_transformers"), keys.take("sbert_ce_default_activation_function")
    name = described.get("activation_fn", older) if isinstance(described, dict) else older
    if name is None:
        return Activation.SIGMOID if labels == 1 else Activation.IDENTITY
    if name not in SCORE_ACTIVATIONS:
        keys.refuse("activation_fn", name, ", ".join(SCORE_ACTIVATIONS))
    return SCORE_ACTIVATIONS[name]


def prefix_reader(prefix: str, *bare: str) -> Callable[[Keys, Mapping[str, Any]], str]:
    """Reads what stands before the encoder's tensor names: nothing where the class is one of the `bare` encoders."""

    def read(keys: Keys, values: Mapping[str, Any]) -> str:
        classes = keys.take("architectures") or bare
        return "" if keys.container is Container.GGUF or classes[0] in bare else prefix

    return read


def _read_head_dim(keys: Keys, values: Mapping[str, Any]) -> int:
    hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
    if hidden % heads:
        keys.refuse("hidden_size", hidden, f"a multiple of {heads} heads")
    return hidden // heads


def _read_max_length(keys: Keys, values: Mapping[str, Any]) -> int | None:
    return None if keys.sentence is None else keys.sentence.max_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """Fields of an encoder, named as in transformers."""

    vocab_size: int = declare(reader=read_vocab_size)
    hidden_size: int = declare(gguf="embedding_length")
    intermediate_size: int = declare(gguf="feed_forward_length")
    num_hidden_layers: int = declare(gguf="block_count", bounds=(1, 1024))
    num_attention_heads: int = declare(gguf="attention.head_count", bounds=(1, 4096))
    head_dim: int = declare(reader=_read_head_dim)
    max_position_embeddings: int = declare(gguf="context_length", bounds=(1, 1 << 30))
    head: Head = declare(reader=read_head)
    max_length: int | None = declare(reader=_read_max_length)
    """Tokens that modules.json's neighbour says the model was made for."""

    def facts(self, positions: int) -> ModelFacts:
        """`positions`: that the encoder has; the model may be made for fewer."""
        return ModelFacts(
            model_type=self.planned_as(),
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            max_positions=min(positions, self.max_length or positions),
            layers=self.num_hidden_layers,
        )

    def attention_params(self, window: int = 0, rotary_dim: int = 0, rope_scale: float = 1.0) -> AttentionParams:
        """Attention of every row to all rows of its sequence; with a window to those less than `window` away."""
        return AttentionParams(
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_attention_heads,
            head_dim=self.head_dim,
            v_head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            causal=0,
            window=window,
            rotary_dim=rotary_dim,
            rope_scale=rope_scale,
        )


def reading(op: Op, value: str) -> Op:
    """The same op over another value."""
    return msgspec.structs.replace(op, reads=(value,))


def head_weights(
    dense: str, head: str, norm: str | None = None, dense_bias: bool = True, norm_bias: bool = True
) -> dict[str, WeightSpec]:
    """The weights of a classification head; `dense`, `head` and `norm`: tensor names without ".weight" and ".bias"."""
    names = {"dense": f"{dense}.weight", "head": f"{head}.weight", "head_bias": f"{head}.bias"}
    if dense_bias:
        names["dense_bias"] = f"{dense}.bias"
    if norm is not None:
        names["norm"] = f"{norm}.weight"
    if norm is not None and norm_bias:
        names["norm_bias"] = f"{norm}.bias"
    return {slot: WeightSpec(f"head.{slot}", Names((name,))) for slot, name in names.items()}


def pool(
    config: EncoderConfig,
    weights: Mapping[str, WeightSpec],
    activation: Activation = Activation.TANH,
    norm_eps: float = 0.0,
) -> Op:
    """An embedding, or the scores of a classification head with these weights: dense, `activation`, norm, head."""
    head = config.head
    params = PoolParams(
        out_dim=head.labels or config.hidden_size,
        pooling=head.pooling,
        normalise=int(head.normalise),
        head_activation=activation if head.labels else Activation.IDENTITY,
        norm_eps=norm_eps if head.labels else 0.0,
        out_activation=head.activation,
    )
    return Op(params, weights if head.labels else {}, ("x",), "pooled", {"dense": config.hidden_size})


def encoder(
    config: EncoderConfig,
    facts: ModelFacts,
    prologue: tuple[Op, ...],
    layers: tuple[tuple[Op, ...], ...],
    epilogue: tuple[Op, ...],
    unused: tuple[str, ...],
) -> Architecture:
    """One program: token ids (and types, where the first op reads them) to one vector a sequence."""
    inputs = tuple(Input(name, DType.I32, (Symbol.ROWS,)) for name in prologue[0].reads)
    program = Program((Stage.ENCODE,), inputs, prologue, layers, epilogue, ("pooled",))
    return Architecture(facts, (program,), unused, (ASSUMED_POOLING,) if config.head.assumed else ())
