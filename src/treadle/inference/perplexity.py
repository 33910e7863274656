"""Perplexity of a text: exp of the mean negative log-probability of its tokens, each given those before it in a window.

Windows and counted positions are those of llama.cpp's perplexity tool: windows of `context` tokens one behind the
other, of which the first half only serves as context. With a stride, windows overlap and the last `stride` positions
of each are counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from treadle.errors import InvalidRequest, NonFiniteLogits
from treadle.inference.llm import LLM

DEFAULT_CONTEXT: Final = 512
ROWS: Final = 512
"""Rows that a step may take; short windows go together."""
Progress = Callable[[int, int, float], None]
"""Called with (windows done, windows in all, perplexity so far)."""


class PerplexityReport(msgspec.Struct, frozen=True):
    """`stderr`: one standard error of `perplexity`. `scored`: tokens whose probability was counted."""

    perplexity: float
    stderr: float
    tokens: int
    scored: int
    windows: int
    context: int
    stride: int | None
    seconds: float


class Window(NamedTuple):
    """`tokens` are fed; the probabilities of those behind position `first` are counted."""

    tokens: list[int]
    first: int


def windows(tokens: Sequence[int], context: int, stride: int | None, bos_id: int | None) -> Iterator[Window]:
    """The windows of a text. `bos_id`: put in place of each window's first token. Raises InvalidRequest.

    Whole windows only, as llama.cpp has it. Without a stride the text must fill two.
    """
    if context < 4:
        raise InvalidRequest(f"context must be at least 4 tokens, found {context}")
    if stride is not None and not 1 <= stride < context:
        raise InvalidRequest(f"stride must lie in [1, {context - 1}], found {stride}")
    least = 2 * context if stride is None else context
    if len(tokens) < least:
        raise InvalidRequest(f"the text has {len(tokens)} tokens; windows of {context} need at least {least}")
    first = context // 2 if stride is None else context - 1 - stride
    for begin in range(0, len(tokens) - context + 1, stride or context):
        fed = list(tokens[begin : begin + context])
        yield Window(fed if bos_id is None else [bos_id, *fed[1:]], first)


def perplexity(
    llm: LLM, text: str, context: int = DEFAULT_CONTEXT, stride: int | None = None, progress: Progress | None = None
) -> PerplexityReport:
    """Of a text under a loaded model. Raises InvalidRequest, PromptTooLong, NonFiniteLogits."""
    began = time.monotonic()
    tokens, bos_id = llm.encode_text(text)
    todo = list(windows(tokens, context, stride, bos_id))
    scores: list[float] = []
    for done, group in _grouped(todo, max(1, ROWS // context)):
        for logprobs in llm.score([window.tokens for window in group], todo[0].first):
            scores += logprobs.tolist()
        if not np.isfinite(scores).all():
            raise NonFiniteLogits(f"window {done}: a log-probability is not finite")
        if progress is not None:
            progress(done, len(todo), math.exp(-sum(scores) / len(scores)))
    found, error = mean_perplexity(scores)
    return PerplexityReport(
        perplexity=found,
        stderr=error,
        tokens=len(tokens),
        scored=len(scores),
        windows=len(todo),
        context=context,
        stride=stride,
        seconds=time.monotonic() - began,
    )


def _grouped(todo: Sequence[Window], size: int) -> Iterator[tuple[int, Sequence[Window]]]:
    for start in range(0, len(todo), size):
        group = todo[start : start + size]
        yield start + len(group), group


def mean_perplexity(logprobs: Sequence[float]) -> tuple[float, float]:
    """exp(-mean) and its standard error, that of the mean carried through exp."""
    values = np.asarray(logprobs, np.float64)
    found = math.exp(-float(values.mean()))
    return found, found * float(values.std(ddof=1)) / math.sqrt(len(values))


def engine_sizes(context: int) -> dict[str, int]:
    """Options of an engine with room for the windows: as many as a step takes, and rows of logits for half of one."""
    sequences = max(1, ROWS // context)
    return {
        "max_model_len": context,
        "max_num_seqs": sequences,
        "max_num_batched_tokens": max(ROWS, sequences),
        "max_num_logits": max(sequences, min(256, context)),
        "state_tokens": sequences * (context + 64),
    }
