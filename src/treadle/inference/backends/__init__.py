"""The backends by name. A backend's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from treadle.errors import BackendUnavailable
from treadle.inference.backends.base import Backend, Numerics
from treadle.plan.views import TensorView


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """`threads` None: as many as there are cores. `decode`: values of a stored tensor, f32 in its shape."""

    threads: int | None
    numerics: Numerics
    decode: Callable[[TensorView], NDArray[np.float32]]
    disabled_fusions: frozenset[str] = frozenset()
    """Lowering passes of the backend that are left out."""


def _cpu(options: BackendOptions) -> Backend:
    from treadle.inference.backends.cpu import CpuBackend
    from treadle.inference.backends.cpu_lowering import FUSIONS

    unknown = options.disabled_fusions - FUSIONS
    if unknown:
        raise BackendUnavailable(f"cpu has no fusion {min(unknown)!r}; it has: {', '.join(sorted(FUSIONS))}")
    return CpuBackend(options.threads, options.numerics, fusions=FUSIONS - options.disabled_fusions)


def _reference(options: BackendOptions) -> Backend:
    from treadle.inference.backends.reference import ReferenceBackend

    if options.disabled_fusions:
        raise BackendUnavailable(f"reference fuses nothing; it has no fusion {min(options.disabled_fusions)!r}")
    return ReferenceBackend(options.decode)


BACKENDS: Final[dict[str, Callable[[BackendOptions], Backend]]] = {"cpu": _cpu, "reference": _reference}


def create(name: str, options: BackendOptions) -> Backend:
    """The backend of that name. Raises BackendUnavailable for an unknown name or one that cannot run here."""
    if name not in BACKENDS:
        raise BackendUnavailable(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")
    if options.numerics not in get_args(Numerics):
        raise BackendUnavailable(f"unknown numerics {options.numerics!r}; known: {', '.join(get_args(Numerics))}")
    if options.threads is not None and options.threads < 1:
        raise BackendUnavailable(f"threads must be at least 1, found {options.threads}")
    return BACKENDS[name](options)
