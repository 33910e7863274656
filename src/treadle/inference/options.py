"""How a model is to be run: what a person may choose, and the largest step that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from treadle.errors import InvalidRequest
from treadle.inference.backends import BACKENDS
from treadle.inference.backends.base import Numerics
from treadle.models.compile import CompileOptions
from treadle.models.quantisation import QUANTISED_TYPES
from treadle.plan.ir import DType, ModelPlans
from treadle.plan.views import StepLimits

DEFAULT_MAX_MODEL_LEN: Final = 8192
DEFAULT_STATE_TOKENS: Final = 16384
DEFAULT_SEQUENCES: Final = 8
DEFAULT_ENCODED: Final = 64
KV_DTYPES: Final[Mapping[str, DType]] = {
    "f32": DType.F32,
    "f16": DType.F16,
    "bf16": DType.BF16,
    "q8_0": DType.Q8_0,
}
DEFAULT_KV_DTYPES: Final[Mapping[Numerics, str]] = {"fast": "f16", "bf16": "bf16", "exact": "f32"}

Sizing = Callable[[int, bool], Mapping[str, int]]
"""The sizes of EngineOptions (max_model_len, max_num_seqs, ...), from the model's positions and whether it encodes."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is to be run. Memory follows from these and the model alone, not from the machine's state."""

    backend: str = "cpu"
    threads: int | None = None
    """None: as many as the process may use."""
    numerics: Numerics = "fast"
    max_model_len: int | None = None
    """Tokens of the longest sequence. None: the model's own limit, at most 8192."""
    max_num_seqs: int | None = None
    """Sequences in one step. None: 8, or 64 of an encoder."""
    max_num_batched_tokens: int = 512
    """Rows of one step; longer prompts are fed in chunks. An encoder's step holds the longest sequence whatever this
    says."""
    kv_dtype: str | None = None
    """f32, f16, bf16 or q8_0. None: by DEFAULT_KV_DTYPES."""
    max_num_logits: int | None = None
    """Rows of logits in one step. None: max_num_seqs."""
    state_tokens: int | None = None
    """Tokens whose state all sequences hold together. None: max_num_seqs full ones, at most 16384 or one full one."""
    quantize: str | None = None
    """Block type that the matrices of an f32, f16 or bf16 checkpoint are encoded to as they are loaded."""
    family_file: str | None = None
    """A Python file that describes the model's family; it is run, and stands in for the families treadle brings."""
    allow_per_slot: bool = False
    """Bind a backend that runs some ops slot by slot."""
    disable_fusion: tuple[str, ...] = ()
    """The backend's own fusions that are left out: slower, and on cpu the same bits."""
    fallback: str | None = None
    """A backend for the whole plan where `backend` cannot run it; without one that is refused."""
    weight_cache: bool = True
    """Map packed weights that an earlier start kept on disk, and keep those of this one."""

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_num_logits", "state_tokens"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InvalidRequest(f"{name} must be a positive integer, found {value!r}")
        if self.fallback is not None and (self.fallback not in BACKENDS or self.fallback == self.backend):
            others = ", ".join(name for name in BACKENDS if name != self.backend)
            raise InvalidRequest(f"fallback must be another backend ({others}), found {self.fallback!r}")
        if self.kv_dtype is not None and self.kv_dtype not in KV_DTYPES:
            raise InvalidRequest(f"kv_dtype must be one of {', '.join(KV_DTYPES)}, found {self.kv_dtype!r}")
        if self.quantize is not None and self.quantize not in QUANTISED_TYPES:
            raise InvalidRequest(f"quantize must be one of {', '.join(QUANTISED_TYPES)}, found {self.quantize!r}")
        for name in ("max_num_batched_tokens", "max_num_logits"):
            value = getattr(self, name)
            if value is not None and value < self._sequences:
                raise InvalidRequest(f"{name} ({value}) must be at least max_num_seqs ({self._sequences})")

    @property
    def _sequences(self) -> int:
        return self.max_num_seqs or DEFAULT_SEQUENCES

    @property
    def compile_options(self) -> CompileOptions:
        default = DEFAULT_KV_DTYPES[self.numerics]
        return CompileOptions(kv_dtype=KV_DTYPES[self.kv_dtype or default])

    def limits(self, plans: ModelPlans, page_tokens: int) -> StepLimits:
        """The largest step. Raises InvalidRequest for a length that the model does not reach."""
        longest = plans.facts.max_positions
        length = self.max_model_len or min(longest, DEFAULT_MAX_MODEL_LEN)
        if length > longest:
            raise InvalidRequest(f"max_model_len ({length}) exceeds the model's {longest} positions")
        if plans.encode is not None:
            rows = max(self.max_num_batched_tokens, length)
            batch = self.max_num_seqs or min(DEFAULT_ENCODED, rows)
            return StepLimits(max_rows=rows, max_batch=batch, max_sampled=1, max_seq_len=length, state_pages=0)
        tokens = self.state_tokens or max(length, min(self._sequences * length, DEFAULT_STATE_TOKENS))
        return StepLimits(
            max_rows=self.max_num_batched_tokens,
            max_batch=self._sequences,
            max_sampled=self.max_num_logits or self._sequences,
            max_seq_len=length,
            state_pages=-(-tokens // page_tokens),
        )
