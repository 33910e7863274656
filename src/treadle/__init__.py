"""treadle: an LLM inference runtime. Models are data, compiled to plans, executed by one generic engine.

    from treadle import LLM, SamplingParams
    LLM("smollm2").generate("Hello", SamplingParams(max_tokens=16))[0].outputs[0].text

Names load on first use, so ``import treadle`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from treadle import errors
from treadle.errors import TreadleError

if TYPE_CHECKING:
    from treadle.inference.llm import LLM
    from treadle.inference.request import CompletionOutput, RequestOutput, SamplingParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CompletionOutput",
    "RequestOutput",
    "SamplingParams",
    "TreadleError",
    "__version__",
    "errors",
]

_HOMES = {
    "LLM": "treadle.inference.llm",
    "CompletionOutput": "treadle.inference.request",
    "RequestOutput": "treadle.inference.request",
    "SamplingParams": "treadle.inference.request",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'treadle' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
