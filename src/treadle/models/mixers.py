"""Blocks of recurrent mixers, from h to h: gated short convolution, Mamba of both generations, gated delta net.

llama.cpp's converter stores -exp(A_log) as ssm_a, squeezes the convolution's taps to two axes, and gives Mamba-2's
vectors a second axis.
"""

from __future__ import annotations

from typing import Final

from treadle.models.blocks import SlotNames, slots
from treadle.models.spec import Op
from treadle.plan.ir import Transform, TransformKind
from treadle.plan.params import GatedDeltaNetParams, MambaNorm, MambaParams, ShortConvParams

SHORTCONV: Final[SlotNames] = {
    "in": ("in_proj.weight", "shortconv.in_proj.weight"),
    "in_bias": ("in_proj.bias", "shortconv.in_proj.bias"),
    "conv": ("conv.weight", "shortconv.conv.weight"),
    "conv_bias": ("conv.bias", "shortconv.conv.bias"),
    "out": ("out_proj.weight", "shortconv.out_proj.weight"),
    "out_bias": ("out_proj.bias", "shortconv.out_proj.bias"),
}
MAMBA: Final[SlotNames] = {
    "in": ("in_proj.weight", "ssm_in.weight"),
    "in_bias": ("in_proj.bias", "ssm_in.bias"),
    "conv": ("conv1d.weight", "ssm_conv1d.weight"),
    "conv_bias": ("conv1d.bias", "ssm_conv1d.bias"),
    "x": ("x_proj.weight", "ssm_x.weight"),
    "dt": ("dt_proj.weight", "ssm_dt.weight"),
    "dt_bias": ("dt_proj.bias", "ssm_dt.bias"),
    "a": ("A_log", "ssm_a"),
    "d": ("D", "ssm_d"),
    "dt_norm": ("dt_layernorm.weight", "ssm_dt_norm.weight"),
    "b_norm": ("b_layernorm.weight", "ssm_b_norm.weight"),
    "c_norm": ("c_layernorm.weight", "ssm_c_norm.weight"),
    "out": ("out_proj.weight", "ssm_out.weight"),
    "out_bias": ("out_proj.bias", "ssm_out.bias"),
}
MAMBA2: Final[SlotNames] = {
    **MAMBA,
    "dt_bias": ("dt_bias", "ssm_dt.bias"),
    "norm": ("norm.weight", "ssm_norm.weight"),
}
DELTA_NET: Final[SlotNames] = {
    "qkv": ("in_proj_qkvz.weight", "attn_qkv.weight"),
    "z": ("in_proj_qkvz.weight", "attn_gate.weight"),
    "b": ("in_proj_ba.weight", "ssm_ba.weight"),
    "a": ("in_proj_ba.weight", "ssm_ba.weight"),
    "conv": ("conv1d.weight", "ssm_conv1d.weight"),
    "dt_bias": ("dt_bias", "ssm_dt.bias"),
    "decay": ("A_log", "ssm_a"),
    "norm": ("norm.weight", "ssm_norm.weight"),
    "out": ("out_proj.weight", "ssm_out.weight"),
}
NEGATIVE_EXP: Final = Transform(TransformKind.NEGATIVE_EXP)


def _reshape(*shape: int) -> tuple[Transform, ...]:
    return (Transform(TransformKind.RESHAPE, shape),)


def _biases(conv: bool, projections: bool) -> tuple[str, ...]:
    return ("conv_bias",) * conv + ("in_bias", "out_bias") * projections


def shortconv(inner: int, width: int, bias: bool, hf: str) -> Op:
    """LFM2's gated short convolution; `hf`: what stands before its tensors' names."""
    present = ("in", "conv", "out", *_biases(bias, bias))
    weights = slots("mixer", SHORTCONV, present, hf, hf_transforms={"conv": _reshape(inner, width)})
    return Op(ShortConvParams(inner, width), weights, ("h",), "h")


def mamba(params: MambaParams, hf: str, conv_bias: bool, bias: bool, norms: bool = False) -> Op:
    """Mamba. `norms`: those of dt, B and C have gains."""
    present = ("in", "conv", "x", "dt", "dt_bias", "a", "d", "out", *_biases(conv_bias, bias))
    present += ("dt_norm", "b_norm", "c_norm") * norms
    # The op takes a as [state, inner].
    turned = (Transform(TransformKind.TRANSPOSE), *_reshape(params.inner * params.state))
    in_hf = {"conv": _reshape(params.inner, params.conv_width), "a": (NEGATIVE_EXP, *turned)}
    return Op(params, slots("mixer", MAMBA, present, hf, {"a": turned}, in_hf), ("h",), "h")


def mamba2(params: MambaParams, hf: str, conv_bias: bool, bias: bool) -> Op:
    """Mamba-2."""
    present = ("in", "conv", "dt_bias", "a", "d", "out", *_biases(conv_bias, bias))
    present += ("norm",) * (params.norm == MambaNorm.GATED_RMS)
    in_hf = {"conv": _reshape(params.dims()["conv_channels"], params.conv_width), "a": (NEGATIVE_EXP,)}
    in_gguf = {"a": _reshape(params.heads), "d": _reshape(params.heads), "norm": _reshape(params.inner)}
    return Op(params, slots("mixer", MAMBA2, present, hf, in_gguf, in_hf), ("h",), "h")


def gated_delta_net(params: GatedDeltaNetParams, hf: str) -> Op:
    """Qwen3-Next's mixer. Checkpoints keep q, k, v, z of each key head together, and so b and a; llama.cpp's converter
    takes the first apart and leaves the second as they are."""
    k_heads, each = params.num_k_heads, params.num_v_heads // params.num_k_heads
    channels, inner = params.dims()["conv_channels"], params.dims()["inner"]
    values = each * params.v_head_dim
    qkvz = Transform(TransformKind.REGROUP_HEAD_ROWS, (k_heads, params.k_head_dim, params.k_head_dim, values, values))
    ba = Transform(TransformKind.REGROUP_HEAD_ROWS, (k_heads, each, each))

    def rows(whole: Transform, start: int, count: int) -> tuple[Transform, ...]:
        return (whole, Transform(TransformKind.SLICE_ROWS, (start, start + count)))

    of_both = {"b": rows(ba, 0, params.num_v_heads), "a": rows(ba, params.num_v_heads, params.num_v_heads)}
    in_hf = {
        **of_both,
        "qkv": rows(qkvz, 0, channels),
        "z": rows(qkvz, channels, inner),
        "conv": _reshape(channels, params.conv_width),
        "decay": (NEGATIVE_EXP,),
    }
    return Op(params, slots("mixer", DELTA_NET, tuple(DELTA_NET), hf, of_both, in_hf), ("h",), "h")
