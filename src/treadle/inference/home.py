"""What is kept under treadle's home beside models: packed weights and certificates."""

from __future__ import annotations

import os

from treadle.formats.hub import home_directory
from treadle.inference.certificates import CertificateStore
from treadle.inference.weight_cache import LIMIT_VARIABLE, WeightCache, limit_from

__all__ = ["certificates", "weight_cache"]


def weight_cache() -> WeightCache:
    """The cache under treadle's home, with the limit of TREADLE_CACHE_LIMIT. Raises InvalidRequest for a bad limit."""
    limit = os.environ.get(LIMIT_VARIABLE)
    return WeightCache(home_directory() / "weights", None if limit is None else limit_from(limit))


def certificates() -> CertificateStore:
    """The certificates under treadle's home."""
    return CertificateStore(home_directory() / "certificates")
