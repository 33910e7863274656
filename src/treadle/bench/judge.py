"""Whether a change is slower: paired measurements, judged with a stated confidence, so that noise decides nothing.

Each turn gives one ratio, HEAD's time over BASE's, of measurements that lay side by side. Where the true ratio lies is
asked of the logarithms' Walsh averages, the means of every two of them: their median estimates it (Hodges and Lehmann,
1963), and the signed-rank distribution says how far from both ends it lies with a given confidence (e.g. Hollander,
Wolfe and Chicken, Nonparametric Statistical Methods, 3.3). It assumes that noise makes a ratio as often larger as
smaller by the same factor, as it does where both sides are measured alike, and nothing else of how it is distributed.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec
import numpy as np

CONFIDENCE: Final = 0.99


class Verdict(StrEnum):
    WITHIN = "within budget"
    BEYOND = "beyond budget"
    UNDECIDED = "undecided"


class Judgement(msgspec.Struct, frozen=True):
    """`ratio`: of HEAD over BASE; it lies between `low` and `high` with the confidence asked for."""

    verdict: Verdict
    ratio: float
    low: float
    high: float
    turns: int


def judge(ratios: Sequence[float], budget: float, confidence: float = CONFIDENCE) -> Judgement:
    """`budget`: by how much HEAD may be above BASE, as in 0.02. Too few ratios for the confidence decide nothing."""
    if not ratios:
        raise ValueError("judging needs at least one ratio")
    logs = np.log(ratios)
    walsh = np.sort((logs[:, None] + logs)[np.triu_indices(len(logs))]) / 2
    k = rank(len(logs), confidence)
    low, high = (math.exp(walsh[k - 1]), math.exp(walsh[-k])) if k else (0.0, math.inf)
    if low > 1 + budget:
        verdict = Verdict.BEYOND
    elif high <= 1 + budget:
        verdict = Verdict.WITHIN
    else:
        verdict = Verdict.UNDECIDED
    return Judgement(verdict, math.exp(np.median(walsh)), low, high, len(logs))


def rank(count: int, confidence: float) -> int:
    """The largest k for which [k-th smallest, k-th largest] of the Walsh averages of `count` values holds their centre
    with that confidence; 0 where even all of them do not."""
    chances = np.zeros(count * (count + 1) // 2 + 1)  # of each sum of the ranks of the values above the centre
    chances[0] = 1
    for n in range(1, count + 1):
        chances[n:] = chances[n:] + chances[:-n]
        chances /= 2
    return int(np.count_nonzero(2 * np.cumsum(chances) <= 1 - confidence + 1e-12))


def exact(base: float, head: float, budget: float) -> Judgement:
    """Of figures without noise, such as counts and bytes."""
    ratio = head / base if base else (1.0 if not head else math.inf)
    verdict = Verdict.BEYOND if ratio > 1 + budget + 1e-12 else Verdict.WITHIN
    return Judgement(verdict, ratio, ratio, ratio, 1)
