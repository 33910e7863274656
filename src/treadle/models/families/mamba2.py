"""Mamba-2: state space duality, one decay a head.

Dao and Gu 2024, arXiv:2405.21060. Reference: transformers' modeling_mamba2.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from treadle.models import mixers
from treadle.models.config import Keys, declare
from treadle.models.decoder import GGUF_HEAD
from treadle.models.registry import Family
from treadle.models.spec import Architecture
from treadle.models.ssm import HF_LAYER, IGNORED, SSMConfig, read_dt_limits, read_heads, ssm
from treadle.plan.params import MambaNorm, MambaParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2Config(SSMConfig):
    MODEL_TYPE: ClassVar[str] = "mamba2"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Mamba2ForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "mamba2"
    IGNORED: ClassVar[frozenset[str]] = IGNORED | {"chunk_size", "time_step_rank"}
    """Chunks order sums only, and nothing of rank time_step_rank is in the model."""
    ONLY: ClassVar[Mapping[str, object]] = {"rms_norm": True, "norm_before_gate": True}

    num_heads: int = declare(reader=read_heads("num_heads", "head_dim", 64))
    n_groups: int = declare(8, gguf="ssm.group_count")
    dt_limits: tuple[float, ...] = declare(reader=read_dt_limits)
    tie_word_embeddings: bool = declare(False, gguf_tensor=f"!{GGUF_HEAD}")

    def check(self, keys: Keys) -> None:
        if self.num_heads % self.n_groups:
            keys.refuse("n_groups", self.n_groups, f"a divisor of {self.num_heads} heads")


def architecture(config: Mamba2Config) -> Architecture:
    params = MambaParams(
        generation=2,
        inner=config.inner_size,
        state=config.state_size,
        conv_width=config.conv_kernel,
        heads=config.num_heads,
        groups=config.n_groups,
        norm=MambaNorm.GATED_RMS,
        norm_groups=config.n_groups,
        norm_eps=config.layer_norm_epsilon,
        dt_min=config.dt_limits[0],
        dt_max=config.dt_limits[1],
        activation=config.hidden_act,
    )
    return ssm(config, mixers.mamba2(params, HF_LAYER + "mixer.", config.use_conv_bias, config.use_bias))


FAMILY = Family(Mamba2Config, architecture)
