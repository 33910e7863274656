"""Falcon Mamba: Mamba with RMS norms over dt, B and C.

Zuo et al. 2024, arXiv:2410.05355. Reference: transformers' modeling_falcon_mamba.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models.config import declare
from treadle.models.families.mamba import MambaConfig, architecture
from treadle.models.registry import Family


@dataclasses.dataclass(frozen=True, kw_only=True)
class FalconMambaConfig(MambaConfig):
    MODEL_TYPE: ClassVar[str] = "falcon_mamba"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("FalconMambaForCausalLM",)
    GGUF_ARCHITECTURE: ClassVar[str | None] = None
    IGNORED: ClassVar[frozenset[str]] = MambaConfig.IGNORED | {"use_falcon_mambapy"}

    normed: bool = declare(True, hf=None)
    mixer_rms_eps: float = declare(1e-6, bounds=(0.0, 1.0))


FAMILY = Family(FalconMambaConfig, architecture)
