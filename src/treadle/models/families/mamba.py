"""Mamba: selective state spaces and nothing else. GGUF files of Falcon Mamba say "mamba" too, with ssm.dt_b_c_rms.

Gu and Dao 2023, arXiv:2312.00752. Reference: transformers' modeling_mamba.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from treadle.models import mixers
from treadle.models.config import declare
from treadle.models.registry import Family
from treadle.models.spec import Architecture
from treadle.models.ssm import HF_LAYER, IGNORED, SSMConfig, read_dt_rank, ssm
from treadle.plan.params import MambaNorm, MambaParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaConfig(SSMConfig):
    MODEL_TYPE: ClassVar[str] = "mamba"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("MambaForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = "mamba"
    IGNORED: ClassVar[frozenset[str]] = IGNORED | {"d_model", "n_layer", "pad_vocab_size_multiple", "fused_add_norm"}
    ONLY: ClassVar[Mapping[str, object]] = {"rms_norm": True, "ssm_cfg": {}}

    time_step_rank: int = declare(reader=read_dt_rank("time_step_rank"))
    normed: bool = declare(False, hf=None, gguf="ssm.dt_b_c_rms")
    """RMS norms without gains over dt, B and C."""
    mixer_rms_eps: float = declare(lambda values: values["layer_norm_epsilon"], hf=None)
    """Of those norms; llama.cpp gives them the layers' epsilon."""


def architecture(config: MambaConfig) -> Architecture:
    params = MambaParams(
        generation=1,
        inner=config.inner_size,
        state=config.state_size,
        conv_width=config.conv_kernel,
        dt_rank=config.time_step_rank,
        norm=MambaNorm.RMS_DT_B_C if config.normed else MambaNorm.NONE,
        norm_eps=config.mixer_rms_eps if config.normed else 0.0,
        activation=config.hidden_act,
    )
    return ssm(config, mixers.mamba(params, HF_LAYER + "mixer.", config.use_conv_bias, config.use_bias))


FAMILY = Family(MambaConfig, architecture)
