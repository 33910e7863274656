"""Llama 3's rope scaling as GGUF keeps it: a tensor of divisors, from which the parameters are found again.

llama.cpp's converter writes the divisors of the default frequencies and drops the parameters that they came from. With
the parameters back, a model has one plan and the same bits whichever container it comes in.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from treadle.models.generators import rope_powers

F32 = NDArray[np.float32]
LOW_FREQ: Final = 1.0
"""low_freq_factor of every Llama 3. (Only its ratios to the two other parameters matter.)"""
HIGH_FREQ: Final = 4.0
"""high_freq_factor of every Llama 3: assumed where no more than one divisor is blended."""
TOLERANCE: Final = 4e-6
"""Relative. Divisors are stored as f32, after some ten operations in f32."""


def llama3_divisors(dim: int, theta: float, factor: float, low_freq: float, high_freq: float, original: float) -> F32:
    """Divisors f32 [dim / 2] of the default frequencies: 1 for short waves, `factor` for long ones, blended between
    (Llama3RopeScaling of convert_hf_to_gguf.py)."""
    wavelength = 2 * math.pi * rope_powers(dim, theta).astype(np.float64)
    smooth = (original / wavelength - low_freq) / (high_freq - low_freq)
    blended = 1 / ((1 - smooth) / factor + smooth)
    return np.where(smooth > 1, 1.0, np.where(smooth < 0, factor, blended)).astype(np.float32)


def llama3_parameters(divisors: F32, dim: int, theta: float) -> tuple[float, float, float, float] | None:
    """(factor, low_freq_factor, high_freq_factor, original_positions) whose divisors these are, or None.

    Between the bands 1 / divisor is s + (1 - s) / factor with s linear in the frequency:
    s = (original / wavelength - low) / (high - low), and two blended divisors tell the line. Whatever is found is
    checked against all divisors.
    """
    if divisors.shape != (dim // 2,) or not np.isfinite(divisors).all():
        return None
    if divisors.min() < 1 - TOLERANCE or divisors.max() <= 1 + TOLERANCE:
        return None
    factor = round(float(divisors.max()), 4)
    blended = (divisors > 1 + TOLERANCE) & (divisors < factor * (1 - TOLERANCE))
    turns = 1 / (2 * math.pi * rope_powers(dim, theta)[blended].astype(np.float64))
    smooth = (1 / divisors[blended].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    if len(turns) >= 2:
        slope, offset = np.polyfit(turns, smooth, 1)
        high = LOW_FREQ - LOW_FREQ / offset if offset < 0 else math.inf
    elif len(turns) == 1:
        high = HIGH_FREQ
        slope = (smooth[0] + LOW_FREQ / (high - LOW_FREQ)) / turns[0]
    else:
        return None
    if not (high < 1e4 and slope > 0):
        return None
    high = round(float(high), 2)
    original = float(round(float(slope) * (high - LOW_FREQ)))
    if high <= LOW_FREQ or original < 1:
        return None
    found = (factor, LOW_FREQ, high, original)
    again = llama3_divisors(dim, theta, *found)
    return found if np.allclose(again, divisors, rtol=TOLERANCE, atol=0) else None
