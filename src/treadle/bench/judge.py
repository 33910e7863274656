"""Whether a change is slower: paired measurements, judged with a stated confidence, so that noise decides nothing.

Each turn gives one ratio, HEAD's time over BASE's, of measurements that lay side by side. The median of the ratios
has a confidence interval that assumes nothing about how noise is distributed: between the k-th smallest and the k-th
largest (order statistics; k from the binomial distribution, see e.g. Conover, Practical Nonparametric Statistics, 3.2).
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from statistics import median
from typing import Final

import msgspec

CONFIDENCE: Final = 0.99


class Verdict(StrEnum):
    WITHIN = "within budget"
    BEYOND = "beyond budget"
    UNDECIDED = "undecided"


class Judgement(msgspec.Struct, frozen=True):
    """`ratio`: the median of HEAD over BASE, between `low` and `high` with the confidence asked for."""

    verdict: Verdict
    ratio: float
    low: float
    high: float
    turns: int


def judge(ratios: Sequence[float], budget: float, confidence: float = CONFIDENCE) -> Judgement:
    """`budget`: by how much HEAD may be above BASE, as in 0.02. Too few ratios for the confidence decide nothing."""
    if not ratios:
        raise ValueError("judging needs at least one ratio")
    ordered = sorted(ratios)
    k = rank(len(ordered), confidence)
    low, high = (ordered[k - 1], ordered[-k]) if k else (0.0, math.inf)
    if low > 1 + budget:
        verdict = Verdict.BEYOND
    elif high <= 1 + budget:
        verdict = Verdict.WITHIN
    else:
        verdict = Verdict.UNDECIDED
    return Judgement(verdict, median(ordered), low, high, len(ordered))


def rank(count: int, confidence: float) -> int:
    """The largest k for which [k-th smallest, k-th largest] of `count` values holds their median with that confidence;
    0 where even all of them do not."""
    outside, k = 0.0, 0
    while True:
        outside += 2 * math.comb(count, k) / 2**count  # the median lies below the (k+1)-th smallest, or above its twin
        if outside > 1 - confidence or 2 * (k + 1) > count:
            return k
        k += 1


def exact(base: float, head: float, budget: float) -> Judgement:
    """Of figures without noise, such as counts and bytes."""
    ratio = head / base if base else (1.0 if not head else math.inf)
    verdict = Verdict.BEYOND if ratio > 1 + budget + 1e-12 else Verdict.WITHIN
    return Judgement(verdict, ratio, ratio, ratio, 1)
