"""Granite 4: Mamba-2 and attention layers with Granite's multipliers, a shared MLP, with or without experts beside it.

IBM Granite Team 2025 (Granite 4.0 Language Models); Dao and Gu 2024, arXiv:2405.21060, for Mamba-2. Reference:
transformers' modeling_granitemoehybrid.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from treadle.models import blocks, experts, mixers
from treadle.models.blocks import HF_LAYER
from treadle.models.config import Keys, convert, declare
from treadle.models.experts import MAX_EXPERTS
from treadle.models.families.granite import MultipliedConfig, multiplied
from treadle.models.hybrid import attends, by_layer_types, has, read_kv_heads
from treadle.models.registry import Family
from treadle.models.rope import Rope, read_rope
from treadle.models.spec import Architecture, Names, Op
from treadle.models.ssm import read_dt_limits, read_expanded, read_heads
from treadle.plan.ir import Container
from treadle.plan.params import MambaNorm, MambaParams, MoEParams, RouterScore

KINDS = {"full_attention": True, "attention": True, "linear_attention": False, "mamba": False}


def read_positions(keys: Keys, values: Mapping[str, Any]) -> Rope | None:
    """No rope unless position_embedding_type is "rope"; GGUF says so by rope.scaling.finetuned."""
    rope = read_rope(keys, values)  # its keys are there in either case
    if keys.container is Container.GGUF:
        return rope if keys.take("rope.scaling.finetuned") else None
    kind = keys.take("position_embedding_type")
    if kind not in (None, "nope", "rope"):
        keys.refuse("position_embedding_type", kind, "rope, nope")
    return rope if kind == "rope" else None


def read_experts(keys: Keys, values: Mapping[str, Any]) -> int:
    """0: there are none."""
    gguf = keys.container is Container.GGUF
    name = "expert_count" if gguf else "num_local_experts"
    found = keys.take(name)
    return int(convert(keys, name, (0 if gguf else 8) if found is None else found, int, (0, MAX_EXPERTS)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraniteMoeHybridConfig(MultipliedConfig):
    MODEL_TYPE: ClassVar[str] = "granitemoehybrid"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("GraniteMoeHybridForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "granitehybrid"
    IGNORED: ClassVar[frozenset[str]] = frozenset({"mamba_chunk_size", "init_method"})
    ONLY: ClassVar[Mapping[str, object]] = {"normalization_function": "rmsnorm"}

    num_key_value_heads: int = declare(reader=read_kv_heads)
    rope: Rope | None = declare(reader=read_positions)
    rms_norm_eps: float = declare(1e-6, gguf="attention.layer_norm_rms_epsilon", bounds=(0.0, 1.0))
    attention_bias: bool = declare(reader=has("attention_bias", False, "attn_q.bias"))
    num_local_experts: int = declare(reader=read_experts)
    num_experts_per_tok: int = declare(2, gguf="expert_used_count", bounds=(0, MAX_EXPERTS))
    shared_intermediate_size: int = declare(1024, gguf="expert_shared_feed_forward_length")
    attends: tuple[bool, ...] = declare(reader=attends(by_layer_types(KINDS, lambda keys, layers: (False,) * layers)))
    mamba_inner: int = declare(reader=read_expanded("mamba_expand"))
    mamba_n_heads: int = declare(reader=read_heads("mamba_n_heads", "mamba_d_head", "auto"))
    mamba_n_groups: int = declare(1, gguf="ssm.group_count")
    mamba_d_state: int = declare(256, gguf="ssm.state_size", bounds=(1, 4096))
    mamba_d_conv: int = declare(4, gguf="ssm.conv_kernel", bounds=(1, 64))
    mamba_conv_bias: bool = declare(reader=has("mamba_conv_bias", True, "ssm_conv1d.bias"))
    mamba_proj_bias: bool = declare(reader=has("mamba_proj_bias", False, "ssm_in.bias"))
    dt_limits: tuple[float, ...] = declare(reader=read_dt_limits)

    def check(self, keys: Keys) -> None:
        super().check(keys)
        if self.mamba_n_heads % self.mamba_n_groups:
            keys.refuse("mamba_n_groups", self.mamba_n_groups, f"a divisor of {self.mamba_n_heads} heads")
        if self.num_local_experts and not 1 <= self.num_experts_per_tok <= self.num_local_experts:
            keys.refuse("num_experts_per_tok", self.num_experts_per_tok, f"1 to {self.num_local_experts}, all experts")


def feed_forward(config: GraniteMoeHybridConfig) -> Op:
    """The shared MLP, or experts with it as the shared one."""
    shared, shared_gate_up = HF_LAYER + "shared_mlp.", blocks.fused_gate_up(config.shared_intermediate_size)
    names = {
        "gate": ("input_linear.weight", "ffn_gate.weight"),
        "up": ("input_linear.weight", "ffn_up.weight"),
        "down": ("output_linear.weight", "ffn_down.weight"),
    }
    if not config.num_local_experts:
        width = config.shared_intermediate_size
        return blocks.mlp(width, config.hidden_act, names=names, hf=shared, hf_transforms=shared_gate_up)
    prefix = HF_LAYER + "block_sparse_moe."
    params = MoEParams(
        config.num_local_experts,
        config.num_experts_per_tok,
        config.intermediate_size,
        activation=config.hidden_act,
        router_score=RouterScore.TOPK_THEN_SOFTMAX,
        shared_intermediate=config.shared_intermediate_size,
    )
    kept = experts.whole(prefix, router="router.layer.weight")
    kept |= experts.fused(prefix, config.intermediate_size, "input_linear.weight", "output_linear.weight")
    kept |= {f"shared_{slot}": Names((shared + hf,), shared_gate_up.get(slot, ())) for slot, (hf, _) in names.items()}
    return experts.moe(params, kept, config.hidden_size)


def architecture(config: GraniteMoeHybridConfig) -> Architecture:
    params = MambaParams(
        generation=2,
        inner=config.mamba_inner,
        state=config.mamba_d_state,
        conv_width=config.mamba_d_conv,
        heads=config.mamba_n_heads,
        groups=config.mamba_n_groups,
        norm=MambaNorm.GATED_RMS,
        norm_groups=config.mamba_n_groups,
        norm_eps=config.rms_norm_eps,
        dt_min=config.dt_limits[0],
        dt_max=config.dt_limits[1],
        activation=config.hidden_act,
    )
    mamba = mixers.mamba2(params, HF_LAYER + "mamba.", config.mamba_conv_bias, config.mamba_proj_bias)
    of_layers = [None if attends else mamba for attends in config.attends]
    return multiplied(config, [feed_forward(config)] * config.num_hidden_layers, of_layers)


FAMILY = Family(GraniteMoeHybridConfig, architecture)
