"""ModernBERT: pre-norm layers with rope, alternating between attention to all rows and to a window, and a gated MLP.

Warner et al. 2024, arXiv:2412.13663. Reference: transformers' modeling_modernbert.py. GGUF files say "modern-bert".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Final

from treadle.models import blocks
from treadle.models.config import declare
from treadle.models.encoder import EncoderConfig, encoder, head_weights, pool, prefix_reader, reading
from treadle.models.registry import Family
from treadle.models.rope import Rope, rope_of_kind
from treadle.models.spec import Architecture, Op, weight
from treadle.models.windows import first_of_n_full
from treadle.plan.params import Activation, Pooling

ATTENTION: Final[blocks.SlotNames] = blocks.fused_attention_names("attn.Wqkv", "attn.Wo")
MLP: Final[blocks.SlotNames] = {
    **dict.fromkeys(("gate", "up"), ("mlp.Wi.weight", "ffn_up.weight")),
    **{f"{slot}_bias": ("mlp.Wi.bias", "ffn_up.bias") for slot in ("gate", "up")},
    "down": ("mlp.Wo.weight", "ffn_down.weight"),
    "down_bias": ("mlp.Wo.bias", "ffn_down.bias"),
}
POOLINGS: Final[Mapping[str, Pooling]] = {"cls": Pooling.CLS, "mean": Pooling.MEAN}
_UNUSED = "initializer_cutoff_factor mlp_dropout classifier_dropout deterministic_flash_attn decoder_bias"
_PREDICTION = "sparse_prediction sparse_pred_ignore_index repad_logits_with_grad reference_compile tie_word_embeddings"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModernBertConfig(EncoderConfig):
    MODEL_TYPE: ClassVar[str] = "modernbert"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = (
        "ModernBertModel",
        "ModernBertForMaskedLM",
        "ModernBertForSequenceClassification",
    )
    GGUF_ARCHITECTURE: ClassVar[str | None] = "modern-bert"
    IGNORED: ClassVar[frozenset[str]] = frozenset(f"{_UNUSED} {_PREDICTION}".split())

    prefix: str = declare(reader=prefix_reader("model.", "ModernBertModel"))
    hidden_activation: Activation = declare(Activation.GELU, choices=blocks.ACTIVATIONS)
    norm_eps: float = declare(1e-5, gguf="attention.layer_norm_epsilon", bounds=(0.0, 1.0))
    norm_bias: bool = declare(False, gguf_tensor="output_norm.bias")
    attention_bias: bool = declare(False, gguf_tensor="blk.0.attn_qkv.bias")
    mlp_bias: bool = declare(False, gguf_tensor="blk.0.ffn_up.bias")
    windows: tuple[int, ...] = declare(reader=first_of_n_full(3, 128))
    rope: Rope = declare(reader=rope_of_kind("full_attention", 160000.0, "global_rope_theta", "rope.freq_base"))
    local_rope: Rope = declare(
        reader=rope_of_kind("sliding_attention", 10000.0, "local_rope_theta", "rope.freq_base_swa")
    )
    classifier_pooling: Pooling = declare(Pooling.CLS, choices=POOLINGS)
    classifier_bias: bool = declare(False)
    classifier_activation: Activation = declare(Activation.GELU, choices=blocks.ACTIVATIONS)


def architecture(config: ModernBertConfig) -> Architecture:
    norm = blocks.Norm(eps=config.norm_eps, centred=True, bias=config.norm_bias)
    hf, cut = config.prefix + "layers.{layer}.", blocks.fused_gate_up(config.intermediate_size)
    biases = blocks.BIASES if config.attention_bias else ()
    mlp = blocks.mlp(
        config.intermediate_size, config.hidden_activation, config.mlp_bias, True, MLP, hf, cut, hf_transforms=cut
    )

    def layer(window: int, first: bool) -> tuple[Op, ...]:
        """The first has no norm before its attention."""
        rope, name = (config.local_rope, "local_rope.inv_freq") if window else (config.rope, "rope.inv_freq")
        params = config.attention_params(window, rope.rotary_dim, rope.scale)
        parts = blocks.fused_qkv(params)
        attention = blocks.attention(params, rope, biases, False, ATTENTION, hf, parts, parts, rope_name=name)
        before = norm.op("layers.{layer}.attention_norm", f"{hf}attn_norm", "blk.{layer}.attn_norm")
        return (
            *((reading(attention, "x"),) if first else (before, attention)),
            blocks.residual(),
            norm.op("layers.{layer}.mlp_norm", f"{hf}mlp_norm", "blk.{layer}.ffn_norm"),
            mlp,
            blocks.residual(),
        )

    if config.head.labels:
        config = dataclasses.replace(config, head=dataclasses.replace(config.head, pooling=config.classifier_pooling))
    head = head_weights("head.dense", "classifier", "head.norm", config.classifier_bias, config.norm_bias)
    table = weight("embedding.table", f"{config.prefix}embeddings.tok_embeddings.weight", "token_embd.weight")
    return encoder(
        config,
        config.facts(config.max_position_embeddings),
        (
            blocks.embedding(config.vocab_size, config.hidden_size, table),
            norm.op("embedding_norm", f"{config.prefix}embeddings.norm", "token_embd_norm", writes="x"),
        ),
        tuple(layer(window, i == 0) for i, window in enumerate(config.windows)),
        (
            norm.op("final_norm", f"{config.prefix}final_norm", "output_norm", writes="x"),
            pool(config, head, config.classifier_activation, config.norm_eps),
        ),
        () if config.head.labels else ("head.*", "decoder.*"),
    )


FAMILY = Family(ModernBertConfig, architecture)
