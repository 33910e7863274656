"""Jamba: Mamba layers with norms of dt, B and C, attention without positions in every eighth, experts in every second.

Lieber et al. 2024, arXiv:2403.19887. Reference: transformers' modeling_jamba.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from treadle.models import blocks, experts, mixers
from treadle.models.blocks import HF_LAYER
from treadle.models.config import Keys, declare
from treadle.models.decoder import decoder
from treadle.models.experts import MAX_EXPERTS, ExpertsConfig
from treadle.models.hybrid import attends, every_nth, has, read_kv_heads
from treadle.models.registry import Family
from treadle.models.rope import Rope
from treadle.models.spec import Architecture, Op
from treadle.models.ssm import read_dt_rank, read_expanded
from treadle.plan.ir import Container
from treadle.plan.params import MambaNorm, MambaParams


def read_sparse(keys: Keys, values: Mapping[str, Any]) -> tuple[bool, ...]:
    """Every expert_layer_period-th layer; in GGUF those with a router. One expert is a plain MLP."""
    layers = int(values["num_hidden_layers"])
    if keys.container is Container.GGUF:
        return tuple(f"blk.{layer}.ffn_gate_inp.weight" in keys.tensors for layer in range(layers))
    chosen = every_nth(keys, layers, "expert_layer_period", "expert_layer_offset", (2, 1))
    return tuple(layer and values["num_experts"] > 1 for layer in chosen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JambaConfig(ExpertsConfig):
    MODEL_TYPE: ClassVar[str] = "jamba"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("JambaForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "jamba"
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep"}
    )
    ONLY: ClassVar[Mapping[str, object]] = {"mamba_inner_layernorms": True, "sliding_window": None}

    num_key_value_heads: int = declare(reader=read_kv_heads)
    rope: Rope | None = declare(reader=lambda keys, values: None)
    rms_norm_eps: float = declare(1e-6, gguf="attention.layer_norm_rms_epsilon", bounds=(0.0, 1.0))
    num_experts: int = declare(gguf="expert_count", reader=experts.num_experts_or(16))
    num_experts_per_tok: int = declare(2, gguf="expert_used_count", bounds=(1, MAX_EXPERTS))
    sparse: tuple[bool, ...] = declare(reader=read_sparse)
    attends: tuple[bool, ...] = declare(
        reader=attends(lambda keys, layers: every_nth(keys, layers, "attn_layer_period", "attn_layer_offset", (8, 4)))
    )
    mamba_d_state: int = declare(16, gguf="ssm.state_size", bounds=(1, 4096))
    mamba_d_conv: int = declare(4, gguf="ssm.conv_kernel", bounds=(1, 64))
    mamba_inner: int = declare(reader=read_expanded("mamba_expand"))
    mamba_dt_rank: int = declare(reader=read_dt_rank("mamba_dt_rank"))
    mamba_conv_bias: bool = declare(reader=has("mamba_conv_bias", True, "ssm_conv1d.bias"))
    mamba_proj_bias: bool = declare(reader=has("mamba_proj_bias", False, "ssm_in.bias"))

    def check(self, keys: Keys) -> None:
        if any(self.sparse):
            super().check(keys)


def architecture(config: JambaConfig) -> Architecture:
    params = MambaParams(
        generation=1,
        inner=config.mamba_inner,
        state=config.mamba_d_state,
        conv_width=config.mamba_d_conv,
        dt_rank=config.mamba_dt_rank,
        norm=MambaNorm.RMS_DT_B_C,
        norm_eps=config.rms_norm_eps,
        activation=config.hidden_act,
    )
    mamba = mixers.mamba(params, HF_LAYER + "mamba.", config.mamba_conv_bias, config.mamba_proj_bias, norms=True)
    attention = blocks.attention(config.attention_params(), None)
    prefix = HF_LAYER + "feed_forward."
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act, hf=prefix)
    moe = experts.moe(
        config.moe_params(config.intermediate_size),
        experts.whole(prefix, router="router.weight")
        | experts.apart(prefix, config.num_experts, **experts.projections("experts.{expert}.{part}_proj.weight")),
        config.hidden_size,
    )

    def layer(attends: bool, sparse: bool) -> tuple[Op, ...]:
        return (
            config.norm.of_layer("mixer_norm", "input_layernorm", "attn_norm"),
            attention if attends else mamba,
            blocks.residual(),
            config.norm.of_layer("mlp_norm", "pre_ff_layernorm", "ffn_norm"),
            moe if sparse else mlp,
            blocks.residual(),
        )

    layers = tuple(layer(*of_layer) for of_layer in zip(config.attends, config.sparse, strict=True))
    return decoder(config, layers, final_norm="model.final_layernorm")


FAMILY = Family(JambaConfig, architecture)
