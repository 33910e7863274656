"""Mixture-of-experts blocks and the config fields that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from treadle.models.blocks import GGUF_LAYER, HF_LAYER
from treadle.models.config import Keys, convert, declare
from treadle.models.decoder import DecoderConfig
from treadle.models.spec import Names, Op, WeightSpec
from treadle.plan.ir import Container, Transform, TransformKind
from treadle.plan.params import MoEParams

EXPERT: Final = "{expert}"
"""Stands in a tensor's name for the number of the expert."""
MAX_EXPERTS: Final = 4096
GGUF: Final[Mapping[str, str]] = {
    "router": "ffn_gate_inp.weight",
    "router_bias": "ffn_gate_inp.bias",
    "score_correction": "exp_probs_b.bias",
    "gate": "ffn_gate_exps.weight",
    "up": "ffn_up_exps.weight",
    "down": "ffn_down_exps.weight",
    "gate_bias": "ffn_gate_exps.bias",
    "up_bias": "ffn_up_exps.bias",
    "down_bias": "ffn_down_exps.bias",
    "shared_gate": "ffn_gate_shexp.weight",
    "shared_up": "ffn_up_shexp.weight",
    "shared_down": "ffn_down_shexp.weight",
    "shared_router": "ffn_gate_inp_shexp.weight",
}
"""Weight slot -> name behind "blk.{layer}." in GGUF, where experts are stacked."""


def whole(prefix: str, **names: str) -> dict[str, Names]:
    """Slots that Hugging Face checkpoints keep as tensors of their own, behind a prefix."""
    return {slot: Names((prefix + name,)) for slot, name in names.items()}


def apart(prefix: str, count: int, **names: str) -> dict[str, Names]:
    """Slots of which every expert has a tensor of its own; names hold `{expert}`."""
    return {
        slot: Names(
            tuple(prefix + name.replace(EXPERT, str(e)) for e in range(count)), (Transform(TransformKind.STACK),)
        )
        for slot, name in names.items()
    }


def fused(prefix: str, intermediate: int, gate_up: str, down: str) -> dict[str, Names]:
    """Stacked experts whose gate and up projections lie below one another in a tensor [experts, 2 * inner, hidden]."""

    def half(start: int) -> Names:
        return Names((prefix + gate_up,), (Transform(TransformKind.SLICE_FIRST, (start, start + intermediate)),))

    return {"gate": half(0), "up": half(intermediate), "down": Names((prefix + down,))}


def projections(pattern: str) -> dict[str, str]:
    """gate, up and down by the names that most checkpoints have: "experts.{expert}.{part}_proj.weight"."""
    return {part: pattern.replace("{part}", part) for part in ("gate", "up", "down")}


def shared_projections(pattern: str) -> dict[str, str]:
    return {f"shared_{part}": name for part, name in projections(pattern).items()}


def moe(params: MoEParams, hf: Mapping[str, Names], hidden: int) -> Op:
    """Experts over h. `hf`: the slots that there are, and where Hugging Face keeps them."""

    def gguf(slot: str) -> Names:
        # llama.cpp keeps a router of one column as a vector.
        cut = (Transform(TransformKind.RESHAPE, (1, hidden)),) if slot == "shared_router" else ()
        return Names((GGUF_LAYER + GGUF[slot],), cut)

    weights = {slot: WeightSpec(f"layers.{{layer}}.moe.{slot}", names, gguf(slot)) for slot, names in hf.items()}
    return Op(params, weights, ("h",), "h")


def num_experts_or(default: int) -> Callable[[Keys, Mapping[str, Any]], int]:
    """A reader of num_experts, which transformers also calls num_local_experts."""

    def read(keys: Keys, values: Mapping[str, Any]) -> int:
        if keys.container is Container.GGUF:
            return int(convert(keys, "expert_count", keys.take("expert_count"), int, (1, MAX_EXPERTS)))
        found = {name: keys.take(name) for name in ("num_experts", "num_local_experts")}
        given = {name: value for name, value in found.items() if value is not None}
        if len(set(map(repr, given.values()))) > 1:
            keys.refuse("num_local_experts", found["num_local_experts"], f"the same as num_experts, {given}")
        name, value = next(iter(given.items()), ("num_experts", default))
        return int(convert(keys, name, value, int, (1, MAX_EXPERTS)))

    return read


def sparse_layers(keys: Keys, values: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers have experts: every decoder_sparse_step-th but those of mlp_only_layers. In GGUF all."""
    layers = int(values["num_hidden_layers"])
    if keys.container is Container.GGUF:
        return (True,) * layers
    step, plain = keys.take("decoder_sparse_step"), keys.take("mlp_only_layers") or []
    every = 1 if step is None else int(convert(keys, "decoder_sparse_step", step, int))
    if not isinstance(plain, list) or any(type(layer) is not int for layer in plain):
        keys.refuse("mlp_only_layers", plain, "a list of layer numbers")
    return tuple((layer + 1) % every == 0 and layer not in plain for layer in range(layers))


def norm_topk_prob(keys: Keys, values: Mapping[str, Any]) -> bool:
    """False where config.json does not say, True where GGUF's expert_weights_norm does not: as llama.cpp does it."""
    gguf = keys.container is Container.GGUF
    key = "expert_weights_norm" if gguf else "norm_topk_prob"
    found = keys.take(key)
    return gguf if found is None else bool(convert(keys, key, found, bool))


def check_chosen(keys: Keys, chosen: int, count: int) -> None:
    """Refuses num_experts_per_tok where it is more than there are."""
    if chosen > count:
        keys.refuse("num_experts_per_tok", chosen, f"at most {count}, all experts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig(DecoderConfig):
    """A decoder with experts."""

    num_experts: int = declare(gguf="expert_count", reader=num_experts_or(8))
    num_experts_per_tok: int = declare(2, gguf="expert_used_count", bounds=(1, MAX_EXPERTS))

    def check(self, keys: Keys) -> None:
        super().check(keys)
        check_chosen(keys, self.num_experts_per_tok, self.num_experts)

    def moe_params(self, intermediate: int, **changes: float) -> MoEParams:
        """Gated experts of this config; `changes`: other values of fields."""
        return MoEParams(
            self.num_experts,
            self.num_experts_per_tok,
            intermediate,
            **{"activation": self.hidden_act, **changes},  # type: ignore[arg-type]
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedSharedConfig(ExpertsConfig):
    """A decoder with experts beside a shared one that has a gate of its own, as Qwen's are."""

    moe_intermediate_size: int = declare(gguf="expert_feed_forward_length")
    shared_expert_intermediate_size: int = declare(gguf="expert_shared_feed_forward_length")
    norm_topk_prob: bool = declare(gguf="expert_weights_norm")

    def moe(self) -> Op:
        """Experts over h beside the shared one."""
        prefix = HF_LAYER + "mlp."
        params = self.moe_params(
            self.moe_intermediate_size,
            normalise=int(self.norm_topk_prob),
            shared_intermediate=self.shared_expert_intermediate_size,
        )
        names = whole(prefix, router="gate.weight", shared_router="shared_expert_gate.weight")
        names |= whole(prefix, **shared_projections("shared_expert.{part}_proj.weight"))
        names |= apart(prefix, self.num_experts, **projections("experts.{expert}.{part}_proj.weight"))
        return moe(params, names, self.hidden_size)
