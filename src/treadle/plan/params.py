"""ParamBlock ABI v1: the packed layout of every op's parameters, declared once (form: `param_struct.py`).

`native/contract/params.hpp` mirrors these structs; `check_abi` compares both sides when a backend loads.
A published (opcode, version) layout never changes: a change is a new version with an `upgrade` from the last.
Optional features are off at 0 unless a field says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from treadle.errors import InvalidParamBlockABI
from treadle.plan.ir import DType, Opcode, ParamBlock
from treadle.plan.param_struct import F32, U32, Params, layout


class Activation(IntEnum):
    SILU = 0
    GELU = 1
    """Exact, by erf."""
    GELU_TANH = 2
    RELU = 3
    RELU2 = 4
    """relu(x)^2."""
    TANH = 5
    SIGMOID = 6
    IDENTITY = 7
    SWIGLU_CLAMPED = 8
    """gate' = min(gate, limit), up' = clip(up, -limit, limit); (up' + 1) * gate' * sigmoid(alpha * gate')."""


class RopeStyle(IntEnum):
    HALF = 0
    """Pairs (i, i + rotary_dim/2)."""
    INTERLEAVED = 1
    """Pairs (2i, 2i + 1)."""


class QKNorm(IntEnum):
    NONE = 0
    RMS_PER_HEAD = 1
    LAYERNORM_PER_HEAD = 2
    """Weights are [heads, head_dim]: each head has its own gain."""
    RMS_WHOLE = 3
    """Over the whole projection, before it is split into heads."""


class RouterScore(IntEnum):
    SOFTMAX_THEN_TOPK = 0
    TOPK_THEN_SOFTMAX = 1
    SIGMOID = 2


class GroupScore(IntEnum):
    MAX = 0
    SUM_TOP2 = 1


class MambaNorm(IntEnum):
    NONE = 0
    GATED_RMS = 1
    """Mamba-2: rmsnorm(y * silu(z))."""
    RMS_DT_B_C = 2
    """Mamba-1 variants that normalise dt, B and C."""


class Pooling(IntEnum):
    MEAN = 0
    CLS = 1
    LAST = 2


class RMSNormParams(Params, frozen=True):
    OPCODE = Opcode.RMSNORM
    eps: F32
    gain_offset: F32 = 0.0
    """Added to the gain (Gemma: 1)."""


class LayerNormParams(Params, frozen=True):
    OPCODE = Opcode.LAYERNORM
    eps: F32
    gain_offset: F32 = 0.0


KV_BLOCK = 32
"""Elements of a head's key or value that share a scale in q8_0."""


def kv_bytes(dtype: int, *widths: int) -> int:
    """Bytes of one position's keys and values, vectors of `widths` elements; 0 if they cannot be kept in `dtype`."""
    if dtype == DType.Q8_0:
        whole = all(width % KV_BLOCK == 0 for width in widths)
        return sum(widths) // KV_BLOCK * (KV_BLOCK + 2) if whole else 0
    return sum(widths) * {DType.F32: 4, DType.F16: 2, DType.BF16: 2}.get(DType(dtype), 0)


class AttentionParams(Params, frozen=True):
    OPCODE = Opcode.MULTIHEAD_ATTENTION
    num_heads: U32
    num_kv_heads: U32
    head_dim: U32
    v_head_dim: U32
    scale: F32
    """Multiplies q.k before softcap and mask."""
    causal: U32 = 1
    window: U32 = 0
    """0: no window. Causal: keys in (pos - window, pos]. Not causal: |pos - key| < window."""
    rotary_dim: U32 = 0
    """Leading dims of each head that are rotated."""
    rope_style: U32 = RopeStyle.HALF
    rope_scale: F32 = 1.0
    """Multiplies cos and sin (YaRN's attention factor)."""
    softcap: F32 = 0.0
    """s -> softcap * tanh(s / softcap)."""
    qk_norm: U32 = QKNorm.NONE
    qk_norm_eps: F32 = 0.0
    qk_norm_gain_offset: F32 = 0.0
    qkv_clip: F32 = 0.0
    """Clamp of the projections to [-clip, clip]."""
    output_gate: U32 = 0
    """1: the attention output is multiplied by sigmoid(x @ gate^T)."""
    kv_dtype: U32 = DType.F32
    """bf16: a backend may round queries and softmax weights to bf16 too. q8_0: blocks of 32 of a head's key or value,
    quantised as they are written."""

    def dims(self) -> dict[str, int]:
        return {
            "q_dim": self.num_heads * self.head_dim,
            "k_dim": self.num_kv_heads * self.head_dim,
            "v_dim": self.num_kv_heads * self.v_head_dim,
            "o_dim": self.num_heads * self.v_head_dim,
            "head_dim": self.head_dim,
            "heads": self.num_heads,
            "kv_heads": self.num_kv_heads,
            "rope_half": self.rotary_dim // 2,
            "q_norm_dim": self.head_dim if self.qk_norm == QKNorm.RMS_PER_HEAD else self.num_heads * self.head_dim,
            "k_norm_dim": self.head_dim if self.qk_norm == QKNorm.RMS_PER_HEAD else self.num_kv_heads * self.head_dim,
        }

    def stateful(self) -> bool:
        return self.causal == 1

    def state_page_bytes(self, page_tokens: int) -> int:
        return page_tokens * self.num_kv_heads * kv_bytes(self.kv_dtype, self.head_dim, self.v_head_dim)


class SwiGLUParams(Params, frozen=True):
    OPCODE = Opcode.SWIGLU
    intermediate: U32
    gated: U32 = 1
    activation: U32 = Activation.SILU
    alpha: F32 = 0.0
    limit: F32 = 0.0
    """alpha and limit serve SWIGLU_CLAMPED."""

    def dims(self) -> dict[str, int]:
        return {"intermediate": self.intermediate}


class MoEParams(Params, frozen=True):
    OPCODE = Opcode.MOE
    num_experts: U32
    experts_per_token: U32
    intermediate: U32
    gated: U32 = 1
    activation: U32 = Activation.SILU
    alpha: F32 = 0.0
    limit: F32 = 0.0
    router_score: U32 = RouterScore.SOFTMAX_THEN_TOPK
    normalise: U32 = 0
    """1: the chosen experts' weights are divided by their sum + normalise_eps."""
    normalise_eps: F32 = 0.0
    routed_scale: F32 = 1.0
    num_groups: U32 = 1
    top_groups: U32 = 1
    group_score: U32 = GroupScore.MAX
    shared_intermediate: U32 = 0

    def dims(self) -> dict[str, int]:
        return {
            "experts": self.num_experts,
            "intermediate": self.intermediate,
            "shared_intermediate": self.shared_intermediate,
            "one": 1,
        }


class MambaParams(Params, frozen=True):
    OPCODE = Opcode.MAMBA_MIXER
    generation: U32
    """1: Mamba (selective scan per channel), 2: Mamba-2 (SSD, one decay a head).

    Rows of `in`: x, gate z; of generation 2 z, x, B, C, dt. `a` is [state, inner] in generation 1. A page of state
    holds the convolution's last inputs [conv_width - 1, channels], then h: [state, inner] in generation 1, in 2 [heads,
    state, inner / heads]."""
    inner: U32
    state: U32
    conv_width: U32
    dt_rank: U32 = 0
    heads: U32 = 0
    groups: U32 = 1
    norm: U32 = MambaNorm.NONE
    norm_groups: U32 = 1
    norm_eps: F32 = 0.0
    dt_min: F32 = 0.0
    dt_max: F32 = float("inf")
    activation: U32 = Activation.SILU

    def _conv_channels(self) -> int:
        return self.inner if self.generation == 1 else self.inner + 2 * self.groups * self.state

    def dims(self) -> dict[str, int]:
        conv = self._conv_channels()
        return {
            "inner": self.inner,
            "state": self.state,
            "conv_width": self.conv_width,
            "conv_channels": conv,
            "in_dim": 2 * self.inner if self.generation == 1 else self.inner + conv + self.heads,
            "x_dim": self.dt_rank + 2 * self.state,
            "dt_rank": self.dt_rank,
            "decays": self.inner * self.state if self.generation == 1 else self.heads,
            "dt_dim": self.inner if self.generation == 1 else self.heads,
        }

    def state_page_bytes(self, page_tokens: int) -> int:
        return 4 * (self._conv_channels() * (self.conv_width - 1) + self.inner * self.state)


class ShortConvParams(Params, frozen=True):
    OPCODE = Opcode.SHORTCONV
    inner: U32
    """Rows of `in`: B, C, u; out(C * conv(B * u))."""
    conv_width: U32

    def dims(self) -> dict[str, int]:
        return {"inner": self.inner, "in_dim": 3 * self.inner, "conv_width": self.conv_width}

    def state_page_bytes(self, page_tokens: int) -> int:
        return 4 * self.inner * (self.conv_width - 1)


class MLAParams(Params, frozen=True):
    OPCODE = Opcode.MLA_ATTENTION
    num_heads: U32
    q_lora_rank: U32
    """0: q is projected directly."""
    kv_lora_rank: U32
    nope_dim: U32
    rope_dim: U32
    v_head_dim: U32
    scale: F32
    norm_eps: F32
    rope_style: U32 = RopeStyle.INTERLEAVED
    rope_scale: F32 = 1.0
    causal: U32 = 1
    kv_dtype: U32 = DType.F32

    def dims(self) -> dict[str, int]:
        return {
            "q_dim": self.num_heads * (self.nope_dim + self.rope_dim),
            "q_lora": self.q_lora_rank,
            "kv_a_dim": self.kv_lora_rank + self.rope_dim,
            "kv_lora": self.kv_lora_rank,
            "kv_b_dim": self.num_heads * (self.nope_dim + self.v_head_dim),
            "o_dim": self.num_heads * self.v_head_dim,
            "rope_half": self.rope_dim // 2,
        }

    def stateful(self) -> bool:
        return self.causal == 1

    def state_page_bytes(self, page_tokens: int) -> int:
        return page_tokens * kv_bytes(self.kv_dtype, self.kv_lora_rank, self.rope_dim)


class GatedDeltaNetParams(Params, frozen=True):
    OPCODE = Opcode.GATED_DELTA_NET
    num_k_heads: U32
    """Rows of `qkv`: q, k, v. A page of state holds the convolution's last inputs [conv_width - 1, channels], then
    S [v_heads, k_head_dim, v_head_dim]."""
    num_v_heads: U32
    k_head_dim: U32
    v_head_dim: U32
    conv_width: U32
    norm_eps: F32
    activation: U32 = Activation.SILU

    def dims(self) -> dict[str, int]:
        conv = 2 * self.num_k_heads * self.k_head_dim + self.num_v_heads * self.v_head_dim
        return {
            "conv_channels": conv,
            "inner": self.num_v_heads * self.v_head_dim,
            "v_heads": self.num_v_heads,
            "v_head_dim": self.v_head_dim,
            "conv_width": self.conv_width,
        }

    def state_page_bytes(self, page_tokens: int) -> int:
        conv = self.dims()["conv_channels"] * (self.conv_width - 1)
        return 4 * (conv + self.num_v_heads * self.k_head_dim * self.v_head_dim)


class EmbeddingParams(Params, frozen=True):
    OPCODE = Opcode.EMBEDDING
    vocab: U32
    scale: F32 = 1.0
    """Multiplies the table's row (not the position and type rows)."""
    max_positions: U32 = 0
    position_offset: U32 = 0
    """Row of the position table for position 0 (RoBERTa: 2)."""
    types: U32 = 0

    def dims(self) -> dict[str, int]:
        return {"vocab": self.vocab, "positions": self.max_positions, "types": self.types}


class ResidualAddParams(Params, frozen=True):
    OPCODE = Opcode.RESIDUAL_ADD
    scale: F32 = 1.0
    """out = a + scale * b."""


class LMHeadParams(Params, frozen=True):
    OPCODE = Opcode.LM_HEAD
    vocab: U32
    scale: F32 = 1.0
    """Multiplies the logits, before softcap."""
    softcap: F32 = 0.0

    def dims(self) -> dict[str, int]:
        return {"vocab": self.vocab}


class PoolParams(Params, frozen=True):
    OPCODE = Opcode.POOL
    out_dim: U32
    pooling: U32 = Pooling.MEAN
    normalise: U32 = 0
    """1: L2-normalised."""
    head_activation: U32 = Activation.IDENTITY
    """Applied after the optional dense layer, before the optional norm and head."""
    norm_eps: F32 = 0.0
    out_activation: U32 = Activation.IDENTITY

    def dims(self) -> dict[str, int]:
        return {"out": self.out_dim}


class VisionPatchEmbedParams(Params, frozen=True):
    OPCODE = Opcode.VISION_PATCH_EMBED
    patch_size: U32
    temporal_patch_size: U32
    channels: U32
    grid_positions: U32 = 0
    """Rows of the learned position table; 0: none."""

    def dims(self) -> dict[str, int]:
        return {
            "patch": self.channels * self.temporal_patch_size * self.patch_size * self.patch_size,
            "grid": self.grid_positions,
        }


def _merger_dims(hidden: int, merge: int, intermediate: int, norm_after_merge: int) -> dict[str, int]:
    """Sizes of the projection that merges merge x merge neighbouring vision rows."""
    merged = hidden * merge * merge
    return {
        "hidden": hidden,
        "merged_dim": merged,
        "intermediate": intermediate,
        "norm_dim": merged if norm_after_merge else hidden,
    }


class VisionSpatialMergeParams(Params, frozen=True):
    OPCODE = Opcode.VISION_SPATIAL_MERGE
    merge: U32
    hidden: U32
    intermediate: U32
    norm_eps: F32
    norm_after_merge: U32 = 0
    activation: U32 = Activation.GELU

    def dims(self) -> dict[str, int]:
        return _merger_dims(self.hidden, self.merge, self.intermediate, self.norm_after_merge)


class VisionDeepstackExtractParams(Params, frozen=True):
    OPCODE = Opcode.VISION_DEEPSTACK_EXTRACT
    merge: U32
    hidden: U32
    intermediate: U32
    norm_eps: F32
    norm_after_merge: U32 = 1
    activation: U32 = Activation.GELU

    def dims(self) -> dict[str, int]:
        return _merger_dims(self.hidden, self.merge, self.intermediate, self.norm_after_merge)


class VisionScatterParams(Params, frozen=True):
    OPCODE = Opcode.VISION_SCATTER
    placeholder: U32
    """Token id whose rows are replaced, in order, by the vision rows."""


PARAMS: Mapping[tuple[Opcode, int], type[Params]] = {
    (cls.OPCODE, cls.VERSION): cls
    for cls in (
        RMSNormParams,
        AttentionParams,
        SwiGLUParams,
        MoEParams,
        MambaParams,
        ShortConvParams,
        MLAParams,
        EmbeddingParams,
        ResidualAddParams,
        GatedDeltaNetParams,
        LayerNormParams,
        LMHeadParams,
        PoolParams,
        VisionPatchEmbedParams,
        VisionSpatialMergeParams,
        VisionDeepstackExtractParams,
        VisionScatterParams,
    )
}
"""Every published layout."""


def unpack(block: ParamBlock, layouts: Mapping[tuple[Opcode, int], type[Params]] = PARAMS) -> Params:
    """The parameters of a block. Raises InvalidParamBlockABI for an unknown version or a wrong size."""
    cls = layouts.get((block.opcode, block.abi_version))
    if cls is None:
        known = sorted(version for opcode, version in layouts if opcode == block.opcode)
        raise InvalidParamBlockABI(
            f"{Opcode(block.opcode).name.lower()}: params version {block.abi_version} is unknown; known: {known}"
        )
    return cls.unpack(block)


def abi() -> dict[str, list[tuple[str, str, int]]]:
    """{"opcode.version": [(field, type code, byte offset), ...]}: what the native core must agree with."""
    return {
        f"{opcode.value}.{version}": [(name, code, 4 * i) for i, (name, code) in enumerate(layout(cls))]
        for (opcode, version), cls in PARAMS.items()
    }


def check_abi(native: Mapping[str, list[tuple[str, str, int]]]) -> None:
    """Refuses a native core whose mirror structs differ. Raises InvalidParamBlockABI naming the first difference."""
    ours = abi()
    for key in sorted(ours.keys() | native.keys()):
        mine, theirs = ours.get(key), native.get(key)
        if mine != (None if theirs is None else [tuple(field) for field in theirs]):
            raise InvalidParamBlockABI(f"params {key}: native core has {theirs}, expected {mine}; rebuild the package")
