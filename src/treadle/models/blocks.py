"""Blocks that families share: each makes ops of the spec language from values of a config.

Where two families differ by a value they call one block with that value. Names follow the layout that most
checkpoints have; a family with others passes its own table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from treadle.models.rope import Rope
from treadle.models.spec import Op, WeightSpec, weight
from treadle.plan.ir import Transform, TransformKind
from treadle.plan.params import (
    Activation,
    AttentionParams,
    EmbeddingParams,
    LayerNormParams,
    LMHeadParams,
    QKNorm,
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
    "gate": ("q_proj.weight", "attn_q.weight"),
}
"""The gate of the output lies in q's tensor, behind q in each head (Qwen3-Next)."""
MLP: Final[SlotNames] = {
    "gate": ("gate_proj.weight", "ffn_gate.weight"),
    "up": ("up_proj.weight", "ffn_up.weight"),
    "down": ("down_proj.weight", "ffn_down.weight"),
    "gate_bias": ("gate_proj.bias", "ffn_gate.bias"),
    "up_bias": ("up_proj.bias", "ffn_up.bias"),
    "down_bias": ("down_proj.bias", "ffn_down.bias"),
}


def plain_mlp_names(up: str, down: str) -> dict[str, tuple[str, str]]:
    """Of an MLP without a gate; Hugging Face's names without ".weight" and ".bias"."""
    return _named({"up": (up, "ffn_up"), "down": (down, "ffn_down")})


def fused_attention_names(qkv: str, o: str) -> dict[str, tuple[str, str]]:
    """Of an attention whose q, k and v are one tensor; as in plain_mlp_names."""
    return _named({**dict.fromkeys(("q", "k", "v"), (qkv, "attn_qkv")), "o": (o, "attn_output")})


def _named(stems: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    return {
        slot + suffix: (f"{hf}.{kind}", f"{gguf}.{kind}")
        for slot, (hf, gguf) in stems.items()
        for suffix, kind in (("", "weight"), ("_bias", "bias"))
    }


PLAIN_MLP: Final[SlotNames] = plain_mlp_names("fc1", "fc2")
PROJECTIONS: Final = ("q", "k", "v", "o")
QK_NORMS: Final = ("q_norm", "k_norm")
QKV_BIASES: Final = ("q_bias", "k_bias", "v_bias")
BIASES: Final = (*QKV_BIASES, "o_bias")
HF_LAYER: Final = "model.layers.{layer}."
GGUF_LAYER: Final = "blk.{layer}."
TransformsOf = Mapping[str, tuple[Transform, ...]]
"""Weight slot -> how it is cut out of its tensor; slots that are not there are whole tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """How a family normalises its rows: RMS norm, or LayerNorm where `centred`.

    `one_plus`: Hugging Face checkpoints keep gain - 1, as Gemma's do; llama.cpp's converter adds the 1, and so does the
    transform, before anything is computed.
    """

    eps: float
    centred: bool = False
    gain: bool = True
    bias: bool = False
    one_plus: bool = False

    def op(self, name: str, hf: str, gguf: str, reads: str = "x", writes: str = "h") -> Op:
        """`name` in the plan; `hf` and `gguf`: tensor names without ".weight" and ".bias"."""
        weights = {}
        if self.gain:
            weights["gain"] = weight(name, f"{hf}.weight", f"{gguf}.weight", hf_transforms=self.transforms())
        if self.bias:
            weights["bias"] = weight(f"{name}_bias", f"{hf}.bias", f"{gguf}.bias")
        params = LayerNormParams(self.eps) if self.centred else RMSNormParams(self.eps)
        return Op(params, weights, (reads,), writes)

    def of_layer(
        self, name: str, hf: str, gguf: str, reads: str = "x", writes: str = "h", hf_layer: str = HF_LAYER
    ) -> Op:
        """One of a layer's norms; `hf` behind `hf_layer` and `gguf` behind "blk.{layer}."."""
        return self.op(f"layers.{{layer}}.{name}", hf_layer + hf, GGUF_LAYER + gguf, reads, writes)

    def transforms(self) -> tuple[Transform, ...]:
        """What makes the gain of the Hugging Face tensor."""
        return (Transform(TransformKind.ADD_CONSTANT, (1,)),) if self.one_plus else ()


def slots(
    block: str,
    names: SlotNames,
    present: tuple[str, ...],
    hf: str,
    gguf_transforms: TransformsOf | None = None,
    hf_transforms: TransformsOf | None = None,
) -> dict[str, WeightSpec]:
    """The weights of a layer's block for the slots that are present."""
    of_gguf, of_hf = gguf_transforms or {}, hf_transforms or {}
    return {
        slot: weight(
            f"layers.{{layer}}.{block}.{slot}",
            hf + names[slot][0],
            GGUF_LAYER + names[slot][1],
            of_gguf.get(slot, ()),
            of_hf.get(slot, ()),
        )
        for slot in present
    }


def embedding(
    vocab: int, hidden: int, table: WeightSpec, scale: float = 1.0, positions: WeightSpec | None = None, rows: int = 0
) -> Op:
    """Rows of the table times `scale`, plus those of a table of `rows` learned positions."""
    weights = {"table": table} if positions is None else {"table": table, "positions": positions}
    params = EmbeddingParams(vocab, scale, max_positions=rows)
    return Op(params, weights, reads=("ids",), sizes={"hidden": hidden})


def lm_head(
    vocab: int, table: WeightSpec, scale: float = 1.0, softcap: float = 0.0, bias: WeightSpec | None = None
) -> Op:
    weights = {"weight": table} if bias is None else {"weight": table, "bias": bias}
    return Op(LMHeadParams(vocab, scale, softcap), weights, ("h",), "logits")


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
    gguf_transforms: TransformsOf | None = None,
    hf_transforms: TransformsOf | None = None,
    reads: str = "h",
    writes: str = "h",
    rope_name: str = "rope.inv_freq",
) -> Op:
    """Attention. `gguf_permuted`: llama.cpp's converter reordered the q and k rows of this family for
    interleaved rope (LlamaModel.permute in convert_hf_to_gguf.py), which the transform undoes."""
    turned = {"q": params.num_heads, "k": params.num_kv_heads} if gguf_permuted else {}
    unturned = {
        slot + suffix: (Transform(TransformKind.ROPE_ROWS_FROM_INTERLEAVED, (heads,)),)
        for slot, heads in turned.items()
        for suffix in ("", "_bias")
    }
    of_gguf = {**unturned, **(gguf_transforms or {})}
    more = (QK_NORMS if params.qk_norm != QKNorm.NONE else ()) + ("gate",) * params.output_gate
    weights = slots("attention", names, PROJECTIONS + biases + more, hf, of_gguf, hf_transforms)
    if rope is not None:
        weights["rope_inv_freq"] = rope.weight(rope_name)
    return Op(params, weights, (reads,), writes)


def fused_qkv(params: AttentionParams) -> dict[str, tuple[Transform, ...]]:
    """q, k, v and their biases cut out of tensors that keep the three below one another."""
    dims = params.dims()
    ends = (0, dims["q_dim"], dims["q_dim"] + dims["k_dim"], dims["q_dim"] + dims["k_dim"] + dims["v_dim"])
    return {
        slot + suffix: (Transform(TransformKind.SLICE_ROWS, (ends[i], ends[i + 1])),)
        for i, slot in enumerate(("q", "k", "v"))
        for suffix in ("", "_bias")
    }


def gated_q(params: AttentionParams) -> dict[str, tuple[Transform, ...]]:
    """q and the output's gate cut out of a tensor that keeps the two of each head below one another."""
    heads, dim = params.num_heads, params.head_dim
    return {
        slot: (Transform(TransformKind.SLICE_HEAD_ROWS, (heads, start, start + dim)),)
        for slot, start in (("q", 0), ("gate", dim))
    }


def fused_gate_up(intermediate: int) -> dict[str, tuple[Transform, ...]]:
    """Gate, up and their biases cut out of tensors that keep the two below one another."""
    return {
        slot + suffix: (Transform(TransformKind.SLICE_ROWS, (start, start + intermediate)),)
        for slot, start in (("gate", 0), ("up", intermediate))
        for suffix in ("", "_bias")
    }


def mlp(
    intermediate: int,
    activation: Activation,
    bias: bool = False,
    gated: bool = True,
    names: SlotNames = MLP,
    hf: str = HF_LAYER + "mlp.",
    gguf_transforms: TransformsOf | None = None,
    hf_transforms: TransformsOf | None = None,
    reads: str = "h",
    writes: str = "h",
) -> Op:
    """Gated or plain MLP."""
    projections = ("gate", "up", "down") if gated else ("up", "down")
    present = projections + (tuple(f"{slot}_bias" for slot in projections) if bias else ())
    params = SwiGLUParams(intermediate, gated=int(gated), activation=activation)
    return Op(params, slots("mlp", names, present, hf, gguf_transforms, hf_transforms), (reads,), writes)
