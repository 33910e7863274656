"""Blocks that families share: each makes ops of the spec language from values of a config.

Where two families differ by a value they call one block with that value. Names follow the layout that most
checkpoints have; a family with others passes its own table.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from treadle.models.rope import Rope
from treadle.models.spec import Op, WeightSpec, weight
from treadle.plan.ir import Transform, TransformKind
from treadle.plan.params import (
    Activation,
    AttentionParams,
    EmbeddingParams,
    LMHeadParams,
    ResidualAddParams,
    RMSNormParams,
    SwiGLUParams,
)

SlotNames = Mapping[str, tuple[str, str]]
"""Weight slot -> (name behind the block's prefix in Hugging Face checkpoints, name behind "blk.{layer}." in GGUF)."""

ACTIVATIONS: Final[Mapping[str, Enum]] = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "relu": Activation.RELU,
    "relu2": Activation.RELU2,
}
"""hidden_act of transformers (ACT2FN)."""

ATTENTION: Final[SlotNames] = {
    "q": ("q_proj.weight", "attn_q.weight"),
    "k": ("k_proj.weight", "attn_k.weight"),
    "v": ("v_proj.weight", "attn_v.weight"),
    "o": ("o_proj.weight", "attn_output.weight"),
    "q_bias": ("q_proj.bias", "attn_q.bias"),
    "k_bias": ("k_proj.bias", "attn_k.bias"),
    "v_bias": ("v_proj.bias", "attn_v.bias"),
    "o_bias": ("o_proj.bias", "attn_output.bias"),
    "q_norm": ("q_norm.weight", "attn_q_norm.weight"),
    "k_norm": ("k_norm.weight", "attn_k_norm.weight"),
}
MLP: Final[SlotNames] = {
    "gate": ("gate_proj.weight", "ffn_gate.weight"),
    "up": ("up_proj.weight", "ffn_up.weight"),
    "down": ("down_proj.weight", "ffn_down.weight"),
    "gate_bias": ("gate_proj.bias", "ffn_gate.bias"),
    "up_bias": ("up_proj.bias", "ffn_up.bias"),
    "down_bias": ("down_proj.bias", "ffn_down.bias"),
}
PROJECTIONS: Final = ("q", "k", "v", "o")
BIASES: Final = ("q_bias", "k_bias", "v_bias", "o_bias")
HF_LAYER: Final = "model.layers.{layer}."


def slots(
    block: str,
    names: SlotNames,
    present: tuple[str, ...],
    hf: str,
    gguf_transforms: Mapping[str, tuple[Transform, ...]] | None = None,
) -> dict[str, WeightSpec]:
    """The weights of a layer's block for the slots that are present."""
    transforms = gguf_transforms or {}
    return {
        slot: weight(
            f"layers.{{layer}}.{block}.{slot}",
            hf + names[slot][0],
            f"blk.{{layer}}.{names[slot][1]}",
            transforms.get(slot, ()),
        )
        for slot in present
    }


def embedding(vocab: int, hidden: int, table: WeightSpec, scale: float = 1.0) -> Op:
    return Op(EmbeddingParams(vocab, scale), {"table": table}, reads=("ids",), sizes={"hidden": hidden})


def lm_head(vocab: int, table: WeightSpec, scale: float = 1.0, softcap: float = 0.0) -> Op:
    return Op(LMHeadParams(vocab, scale, softcap), {"weight": table}, ("h",), "logits")


def rmsnorm(gain: WeightSpec, eps: float, reads: str = "x", writes: str = "h", gain_offset: float = 0.0) -> Op:
    return Op(RMSNormParams(eps, gain_offset), {"gain": gain}, (reads,), writes)


def residual(reads: str = "h", scale: float = 1.0) -> Op:
    """x = x + scale * value."""
    return Op(ResidualAddParams(scale), reads=("x", reads))


def attention(
    params: AttentionParams,
    rope: Rope | None,
    biases: tuple[str, ...] = (),
    gguf_permuted: bool = False,
    names: SlotNames = ATTENTION,
    hf: str = HF_LAYER + "self_attn.",
) -> Op:
    """Attention from h to h. `gguf_permuted`: llama.cpp's converter reordered the q and k rows of this family for
    interleaved rope (LlamaModel.permute in convert_hf_to_gguf.py), which the transform undoes."""
    turned = {"q": params.num_heads, "k": params.num_kv_heads} if gguf_permuted else {}
    transforms = {
        slot + suffix: (Transform(TransformKind.ROPE_ROWS_FROM_INTERLEAVED, (heads,)),)
        for slot, heads in turned.items()
        for suffix in ("", "_bias")
    }
    weights = slots("attention", names, PROJECTIONS + biases, hf, transforms)
    if rope is not None:
        weights["rope_inv_freq"] = rope.weight()
    return Op(params, weights, ("h",), "h")


def mlp(
    intermediate: int,
    activation: Activation,
    bias: bool = False,
    gated: bool = True,
    names: SlotNames = MLP,
    hf: str = HF_LAYER + "mlp.",
) -> Op:
    """Gated or plain MLP from h to h."""
    projections = ("gate", "up", "down") if gated else ("up", "down")
    present = projections + (tuple(f"{slot}_bias" for slot in projections) if bias else ())
    params = SwiGLUParams(intermediate, gated=int(gated), activation=activation)
    return Op(params, slots("mlp", names, present, hf), ("h",), "h")


def layer_norm_weight(name: str, hf: str, gguf: str) -> WeightSpec:
    """The gain of one of a layer's norms."""
    return weight(f"layers.{{layer}}.{name}", HF_LAYER + hf, "blk.{layer}." + gguf)
