"""From a row of logits to a token: bias, penalties, temperature, min-p, top-k, top-p, seeded draw, log-probabilities.

Every function sees one row of one request: what runs beside it cannot matter. Order as in vLLM's sampler.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from treadle.errors import NonFiniteLogits
from treadle.inference.request import Request, SamplingParams

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_U64: Final = 0xFFFF_FFFF_FFFF_FFFF
_NOTHING: Final = np.empty(0, np.int64)
_SORTED_WHOLE: Final = 1024
"""Candidates that top-p sorts without looking for the part that matters."""
_BLOCK: Final = 256


def sample(row: F32, request: Request) -> int:
    """The next token of `request` given its logits [vocab]. Never writes to `row`. Raises NonFiniteLogits."""
    if request.params.changes_logits:
        row = processed(row, request)
    best = int(row.argmax())  # the first NaN where there is one
    if not math.isfinite(row[best]):
        raise NonFiniteLogits(f"request {request.id}: logit of token {best} is {row[best]}")
    if request.params.greedy:
        return best
    tokens, weights = candidates(row, float(row[best]), request.params)
    return draw(tokens, weights, uniform(request.seed, request.index, request.output_length))


def processed(row: F32, request: Request) -> F32:
    """A copy of the logits with bias, the floor of min_tokens, and penalties applied.

    Repetition (Keskar et al. 2019): l > 0 -> l / r, else l * r, for tokens of prompt and output. Frequency and
    presence: l - f * count - p, for tokens of the output.
    """
    params = request.params
    row = row.copy()
    if params.logit_bias:
        for token, bias in params.logit_bias.items():
            row[token] += np.float32(bias)
    if request.output_length < params.min_tokens:
        row[list(request.stop_ids)] = -np.inf
    if request.prompt_counts is not None and request.output_counts is not None:
        generated, counts = request.output_counts.ids, request.output_counts.counts
        if params.repetition_penalty != 1.0:
            seen = np.union1d(request.prompt_counts.ids, generated)
            penalty, values = np.float32(params.repetition_penalty), row[seen]
            row[seen] = np.where(values > 0, values / penalty, values * penalty)
        row[generated] -= np.float32(params.frequency_penalty) * counts + np.float32(params.presence_penalty)
    return row


def candidates(row: F32, best: float, params: SamplingParams) -> tuple[I64 | None, F32]:
    """Token ids that may be drawn (None: all) and their unnormalised probabilities (largest: 1), ascending by id.

    Values equal to the k-th largest all stay, as do those equal to the last one that top-p admits by id.
    """
    tokens = _top_k(row, params.top_k)
    values = row if tokens is None else row[tokens]
    weights = values - np.float32(best)
    with np.errstate(over="ignore"):  # to -inf, whose exp is 0 as it should
        weights /= np.float32(params.temperature)
    np.exp(weights, out=weights)
    if params.min_p > 0.0:
        kept = np.flatnonzero(weights >= params.min_p)
        tokens, weights = kept if tokens is None else tokens[kept], weights[kept]
    if params.top_p < 1.0:
        kept = _top_p(weights, params.top_p)
        tokens, weights = kept if tokens is None else tokens[kept], weights[kept]
    return tokens, weights


def _top_k(row: F32, k: int) -> I64 | None:
    """Ids of the k largest (ties with the last included), ascending; None for all."""
    if not 0 < k < len(row):
        return None
    threshold = np.partition(row, len(row) - k)[len(row) - k]
    return np.flatnonzero(row >= threshold)


def _top_p(weights: F32, p: float) -> I64:
    """Indices, ascending, of the smallest set of largest weights whose share reaches p (Holtzman et al. 2019).

    A histogram over the weights' leading bits finds the bin where that happens; only this bin is sorted, equal
    weights by index. `weights` lie in [0, 1].
    """
    needed = p * float(weights.sum(dtype=np.float64))
    certain, edge, below = _NOTHING, np.arange(len(weights)), 0.0
    if len(weights) > _SORTED_WHOLE:
        bins = weights.view(np.uint32) >> np.uint32(16)  # ascending with the weight, as none is negative
        mass = np.cumsum(np.bincount(bins, weights=weights)[::-1])
        at = min(int(np.searchsorted(mass, needed)), len(mass) - 1)
        certain, edge = np.flatnonzero(bins > len(mass) - 1 - at), np.flatnonzero(bins == len(mass) - 1 - at)
        below = float(mass[at - 1]) if at else 0.0
    order = edge[np.argsort(-weights[edge], kind="stable")]
    count = int(np.searchsorted(np.cumsum(weights[order], dtype=np.float64), needed - below)) + 1
    return np.sort(np.concatenate([certain, order[:count]]))


def uniform(seed: int, stream: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    return (philox([position & _U64, stream & _U64, 0, 0], [seed & _U64, 0])[0] >> 11) * 2.0**-53


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10: four random u64 from a counter of four and a key of two (Salmon et al. 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = (b >> 64) ^ c1 ^ k0, b & _U64, (a >> 64) ^ c3 ^ k1, a & _U64
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _U64, (k1 + 0xBB67AE8584CAA73B) & _U64
    return [c0, c1, c2, c3]


def draw(tokens: I64 | None, weights: F32, u: float) -> int:
    """Inverts the cumulative distribution at `u`; a token of weight 0 is never drawn.

    First over sums of blocks, then within one: a running sum over a whole vocabulary costs more than all the rest.
    """
    if len(weights) > 2 * _BLOCK:
        blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)), dtype=np.float64)
        target = u * blocks[-1]
        block = _first_above(blocks, target)
        start = block * _BLOCK
        mass = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
        at = start + _first_above(mass, target - (blocks[block - 1] if block else 0.0))
    else:
        mass = np.cumsum(weights, dtype=np.float64)
        at = _first_above(mass, u * mass[-1])
    return at if tokens is None else int(tokens[at])


def _first_above(mass: NDArray[np.float64], target: float) -> int:
    """First index whose running sum exceeds `target`; where rounding leaves none, the one that reaches the total."""
    at = int(np.searchsorted(mass, target, side="right"))
    return at if at < len(mass) else int(np.searchsorted(mass, mass[-1]))


def top_logprobs(row: F32, chosen: int, count: int) -> list[tuple[int, float, int]]:
    """(token, log-probability, rank) of the chosen token and then of the `count` most probable ones.

    Of the unprocessed logits [vocab]: l - log(sum(exp(l))). Equal logits rank by id.
    """
    best = float(row.max())
    shift = best + math.log(float(np.exp(row - np.float32(best)).sum(dtype=np.float64)))
    value = row[chosen]
    rank = 1 + int((row > value).sum()) + int((row[:chosen] == value).sum())
    found = [(chosen, float(value) - shift, rank)]
    if count:
        threshold = np.partition(row, len(row) - count)[len(row) - count] if count < len(row) else row.min()
        top = np.flatnonzero(row >= threshold)
        top = top[np.argsort(-row[top], kind="stable")][:count]
        found += [(int(token), float(row[token]) - shift, i + 1) for i, token in enumerate(top)]
    return found
