"""Choosing a column from a row of values. Plain definition: native/compute/choose.cpp must agree to the last bit.

All sums are of integers: a weight e^x in [0, 1] counts as round(2^40 e^x), so that no sum depends on its order. What is
drawn is a pure function of the row, the parameters and the random bits. Functions take one row [columns] of f32.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MASS_BITS: Final = 40
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF
_EXP: Final = (0.00139505998, 0.00836895406, 0.041666206, 0.166665182, 0.5)


def draw(row: F32, random: int, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> int:
    """The column where `random`, 64 uniform bits, falls on the running mass of the columns that may be drawn."""
    columns, masses = candidates(row, temperature, top_k, top_p, min_p)
    running = np.cumsum(masses)
    target = random * int(running[-1]) >> 64
    return int(columns[np.searchsorted(running, target, side="right")])


def candidates(row: F32, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> tuple[I64, I64]:
    """Columns that may be drawn, ascending, and their masses.

    top_k keeps the k largest values and all that equal the k-th; min_p weights that reach it (the largest is 1); top_p
    the fewest largest weights whose share of the mass so far reaches it, equals by column (Holtzman et al. 2019).
    """
    columns: I64 = np.arange(len(row))
    if 0 < top_k < len(row):
        columns = np.flatnonzero(row >= np.sort(row)[-top_k])
    weights = exp(_scaled(row[columns], row.max(), temperature))
    columns, weights = columns[weights >= np.float32(min_p)], weights[weights >= np.float32(min_p)]
    masses = masses_of(weights)
    if top_p < 1.0:
        total = int(masses.sum())
        order = np.argsort(-weights, kind="stable")
        needed = min(max(math.ceil(top_p * float(total)), 1), total)
        kept = np.sort(order[: np.searchsorted(np.cumsum(masses[order]), needed) + 1])
        columns, masses = columns[kept], masses[kept]
    return columns, masses


def log_probabilities(row: F32, chosen: int, count: int) -> list[tuple[int, float, int]]:
    """(column, log(e^x / sum(e^x)), rank) of the chosen column and then of the `count` largest; equals by column."""
    best = row.max()
    shift = float(best) + math.log(int(masses_of(exp(_scaled(row, best, 1.0))).sum()) / 2**MASS_BITS)
    order = np.argsort(-row, kind="stable")
    rank = 1 + int(np.flatnonzero(order == chosen)[0])
    found = [(chosen, rank), *((int(column), i) for i, column in enumerate(order[:count], start=1))]
    return [(column, float(row[column]) - shift, rank) for column, rank in found]


def penalised(values: F32, counts: F32, repetition: float, frequency: float, presence: float) -> F32:
    """Values of columns seen before, of which `counts` were chosen.

    Repetition (Keskar et al. 2019, arXiv:1909.05858): x > 0 -> x / r, else x * r. Frequency and presence, where counts
    are not 0: x - (f * count + p).
    """
    r = np.float32(repetition)
    values = np.where(values > 0, values / r, values * r)
    lowered = values - (np.float32(frequency) * counts + np.float32(presence))
    result: F32 = np.where(counts > 0, lowered, values)
    return result


def _scaled(values: F32, largest: np.float32, temperature: float) -> F32:
    """(values - largest) / temperature; what overflows is -inf, whose exp is 0 as it should be."""
    with np.errstate(over="ignore"):
        result: F32 = (values - largest) * (np.float32(1) / np.float32(temperature))
    return result


def masses_of(weights: F32) -> I64:
    """round(weight * 2^40), ties to even."""
    return np.rint(weights.astype(np.float64) * 2.0**MASS_BITS).astype(np.int64)


def exp(x: F32) -> F32:
    """e^x of x <= 0 as the native kernels calculate it, to about one unit in the last place; 0 below -87.33."""
    one, magic = np.float32(1), np.float32(1.5 * 2**23)
    bounded = np.maximum(x, np.float32(-87.33))
    shifted = fma(bounded, np.float32(1.44269504), magic)  # the low bits hold x / ln 2, rounded
    whole = shifted - magic
    r = fma(whole, np.float32(2.12194440e-4), fma(whole, np.float32(-0.693359375), bounded))
    p = np.full_like(r, _EXP[0])
    for coefficient in _EXP[1:]:
        p = fma(p, r, np.float32(coefficient))
    y = fma(r * r, p, r) + one
    scaled = (y.view(np.int32) + (shifted.view(np.int32) << 23)).view(np.float32)
    result: F32 = np.where(x < np.float32(-87.33), np.float32(0), scaled)
    return result


def fma(a: F32, b: F32 | np.float32, c: F32 | np.float32) -> F32:
    """a * b + c, rounded once. In f64 the product is exact; the sum is rounded to odd, so that f32 rounds it right."""
    product, addend = a.astype(np.float64) * np.float64(b), np.asarray(c, np.float64)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    inexact_even = (error != 0) & (total.view(np.int64) & 1 == 0)
    outward = np.where((error > 0) == (total > 0), 1, -1)
    bits: I64 = total.view(np.int64) + np.where(inexact_even, outward, 0)
    return bits.view(np.float64).astype(np.float32)


def random_bits(seed: int, stream: int, position: int) -> int:
    """64 bits that depend on nothing but the arguments, each taken modulo 2^64."""
    return philox([position & _U64, stream & _U64, 0, 0], [seed & _U64, 0])[0]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10: four random u64 from a counter of four and a key of two (Salmon et al. 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = (b >> 64) ^ c1 ^ k0, b & _U64, (a >> 64) ^ c3 ^ k1, a & _U64
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _U64, (k1 + 0xBB67AE8584CAA73B) & _U64
    return [c0, c1, c2, c3]
