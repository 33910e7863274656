"""What DeepSeek's decoders share, and GLM's with it: a dense MLP in the first layers, experts in the others, routed by
groups and corrected scores; DeepSeek's own is the latent attention in every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from treadle.models import blocks, experts
from treadle.models.blocks import HF_LAYER
from treadle.models.config import Keys, convert, declare
from treadle.models.decoder import DecoderConfig, decoder, pre_norm_layer
from treadle.models.experts import MAX_EXPERTS
from treadle.models.latent import LatentConfig, mla
from treadle.models.spec import Architecture, Op
from treadle.plan.ir import Container
from treadle.plan.params import GroupScore, MoEParams, RopeStyle, RouterScore

GROUP_KEYS: Final[Mapping[str, str]] = {"n_group": "expert_group_count", "topk_group": "expert_group_used_count"}
GATING: Final = {False: (None, 1), True: (2,)}
"""Whether scores are sigmoids -> expert_gating_func of GGUF."""
NORM_EPS: Final = 1e-20


def switch(key: str, gguf: str | None, default: bool) -> Callable[[Keys, Mapping[str, Any]], bool]:
    """A reader of a bool; null means false, as in transformers."""

    def read(keys: Keys, values: Mapping[str, Any]) -> bool:
        name = key if keys.container is Container.SAFETENSORS else gguf
        found = None if name is None else keys.take(name)
        if found is None:
            return default if name is None or name not in keys else False
        return bool(convert(keys, str(name), found, bool))

    return read


def read_groups(keys: Keys, key: str, default: int) -> int:
    """n_group or topk_group; null and absent mean `default`."""
    name = GROUP_KEYS[key] if keys.container is Container.GGUF else key
    found = keys.take(name)
    return default if found is None else int(convert(keys, name, found, int, (1, MAX_EXPERTS)))


def scores(sigmoid: bool) -> Callable[[Keys, Mapping[str, Any]], bool]:
    """A reader of `sigmoid`, which is the family's own; GGUF says it once more."""

    def read(keys: Keys, values: Mapping[str, Any]) -> bool:
        if keys.container is Container.GGUF and (kind := keys.take("expert_gating_func")) not in GATING[sigmoid]:
            keys.refuse("expert_gating_func", kind, str(GATING[sigmoid][-1]))
        return sigmoid

    return read


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutedConfig(DecoderConfig):
    """Routing: `sigmoid` scores are corrected by a learnt bias, groups of experts are scored by their two best; softmax
    scores by their best."""

    first_k_dense_replace: int = declare(0, gguf="leading_dense_block_count", bounds=(0, 1024))
    n_routed_experts: int = declare(gguf="expert_count", bounds=(1, MAX_EXPERTS))
    n_shared_experts: int = declare(gguf="expert_shared_count", bounds=(1, MAX_EXPERTS))
    num_experts_per_tok: int = declare(gguf="expert_used_count", bounds=(1, MAX_EXPERTS))
    moe_intermediate_size: int = declare(gguf="expert_feed_forward_length")
    routed_scaling_factor: float = declare(1.0, gguf="expert_weights_scale")
    norm_topk_prob: bool = declare(reader=switch("norm_topk_prob", "expert_weights_norm", False))
    sigmoid: bool = declare(reader=scores(sigmoid=False))
    n_group: int = declare(reader=lambda keys, values: read_groups(keys, "n_group", 1))
    topk_group: int = declare(reader=lambda keys, values: read_groups(keys, "topk_group", 1))

    def check(self, keys: Keys) -> None:
        super().check(keys)
        if self.n_routed_experts % self.n_group:
            keys.refuse("n_group", self.n_group, f"a divisor of {self.n_routed_experts} experts")
        if self.topk_group > self.n_group:
            keys.refuse("topk_group", self.topk_group, f"at most {self.n_group} groups")
        reachable = self.n_routed_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > reachable:
            keys.refuse("num_experts_per_tok", self.num_experts_per_tok, f"at most {reachable}, those of topk_group")

    def moe(self) -> Op:
        params = MoEParams(
            self.n_routed_experts,
            self.num_experts_per_tok,
            self.moe_intermediate_size,
            activation=self.hidden_act,
            router_score=RouterScore.SIGMOID if self.sigmoid else RouterScore.SOFTMAX_THEN_TOPK,
            normalise=int(self.norm_topk_prob),
            normalise_eps=NORM_EPS,
            routed_scale=self.routed_scaling_factor,
            num_groups=self.n_group,
            top_groups=self.topk_group,
            group_score=GroupScore.SUM_TOP2 if self.sigmoid else GroupScore.MAX,
            shared_intermediate=self.n_shared_experts * self.moe_intermediate_size,
        )
        prefix = HF_LAYER + "mlp."
        names = experts.whole(prefix, router="gate.weight")
        if self.sigmoid:
            names |= experts.whole(prefix, score_correction="gate.e_score_correction_bias")
        names |= experts.whole(prefix, **experts.shared_projections("shared_experts.{part}_proj.weight"))
        one = experts.projections("experts.{expert}.{part}_proj.weight")
        names |= experts.apart(prefix, self.n_routed_experts, **one)
        return experts.moe(params, names, self.hidden_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepseekConfig(LatentConfig, RoutedConfig):
    ONLY: ClassVar[Mapping[str, object]] = {"mlp_bias": False, "moe_layer_freq": 1}
    IGNORED: ClassVar[frozenset[str]] = frozenset({"aux_loss_alpha", "seq_aux", "ep_size"})


def dense_then_sparse(config: RoutedConfig, attention: Op, gguf_mlp_norm: str = "ffn_norm") -> Architecture:
    """The layers behind the last, which predict more than one token ahead, are not part of the model."""
    layers = config.num_hidden_layers
    dense = min(config.first_k_dense_replace, layers)
    mlp = blocks.mlp(config.intermediate_size, config.hidden_act)
    first = pre_norm_layer(config, attention, mlp, gguf_mlp_norm=gguf_mlp_norm)
    then = pre_norm_layer(config, attention, config.moe(), gguf_mlp_norm=gguf_mlp_norm)
    unused = (f"model.layers.{layers}.*", f"blk.{layers}.*")
    return decoder(config, (first,) * dense + (then,) * (layers - dense), unused=unused)


def deepseek(config: DeepseekConfig, rope_style: RopeStyle = RopeStyle.INTERLEAVED) -> Architecture:
    return dense_then_sparse(config, mla(config.mla_params(rope_style), config.rope, config.attention_bias))
