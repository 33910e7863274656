"""The parameters of Llama 3's rope scaling, found again in the divisors that GGUF keeps."""

import math

import numpy as np
import pytest
import torch

from treadle.models.generators import generate, rope_powers
from treadle.models.rope_divisors import llama3_divisors, llama3_parameters
from treadle.plan.ir import Generator, GeneratorKind

# dim, theta, (factor, low_freq_factor, high_freq_factor, original_max_position_embeddings)
KNOWN = {
    "llama 3.1 8B": (128, 500000.0, (8.0, 1.0, 4.0, 8192.0)),
    "llama 3.2 1B": (64, 500000.0, (32.0, 1.0, 4.0, 8192.0)),
    "other bands": (128, 500000.0, (16.0, 1.0, 2.5, 8192.0)),
    "tiny": (16, 10000.0, (8.0, 1.0, 4.0, 64.0)),
    "one blended": (16, 500000.0, (8.0, 1.0, 4.0, 64.0)),
}


def converted(dim, theta, factor, low, high, original):
    """As LlamaModel.generate_extra_tensors of convert_hf_to_gguf.py: torch f32, one frequency after the other."""
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    factors = []
    for freq in freqs:
        wavelength = 2 * math.pi / freq
        if wavelength < original / high:
            factors.append(1)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32).numpy()


def by_quotient(dim, theta, *args):
    """Default by scaled frequency: off by a bit or two in the bands, too."""
    scaled = generate(Generator(GeneratorKind.ROPE_LLAMA3, (float(dim), theta, *args)))
    return (1.0 / (scaled.astype(np.float64) * rope_powers(dim, theta))).astype(np.float32)


@pytest.mark.parametrize("write", [converted, llama3_divisors, by_quotient])
@pytest.mark.parametrize("name", KNOWN)
def test_parameters_are_found_again(name, write):
    dim, theta, args = KNOWN[name]
    divisors = write(dim, theta, *args)
    assert llama3_parameters(divisors, dim, theta) == args
    blended = np.count_nonzero((divisors > 1) & (divisors < args[0]))
    assert (blended == 1) == (name == "one blended")


def test_divisors_are_those_of_the_converter():
    for dim, theta, args in KNOWN.values():
        np.testing.assert_allclose(llama3_divisors(dim, theta, *args), converted(dim, theta, *args), rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d * np.float32(1.00002),
        lambda d: np.where(np.arange(len(d)) == np.flatnonzero(d > 1)[1], d * np.float32(1.0001), d),
        lambda d: d[:-1],
        lambda d: d[::-1],
        lambda d: np.ones_like(d),
        lambda d: d * np.nan,
        lambda d: -d,
        lambda d: np.sqrt(d),
        lambda d: np.linspace(1, 8, len(d), dtype=np.float32),
        lambda d: np.where(d > 1, d.max(), d),
    ],
)
def test_other_divisors_are_not_taken_for_llama3s(change):
    dim, theta, args = KNOWN["llama 3.1 8B"]
    divisors = change(converted(dim, theta, *args)).astype(np.float32)
    assert llama3_parameters(divisors, dim, theta) is None
