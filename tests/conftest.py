"""Fixtures that several folders share: tiny checkpoints and SmolLM2, each made or fetched once a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# No deadline an example: on a busy machine that fails what is right. In CI the examples are the same every time.
settings.register_profile("treadle", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("treadle")

# Tests pack what they run: a cache of the user's would hide a defect of packing, and be filled with tiny models.
os.environ["TREADLE_CACHE_LIMIT"] = "0"

# A shell that starts the tests behind ignores Ctrl-C for them, and for all that they start; some of them send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name in `tiny.CONFIGS` -> its Hugging Face directory."""
    from tests import tiny  # brings torch, which most tests do without

    root = tmp_path_factory.mktemp("tiny")
    return cache(lambda name: tiny.save(name, root / name))


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(name in `tiny.CONFIGS`, ggml type of its matrices) -> its GGUF file."""
    from tests import tiny

    root = tmp_path_factory.mktemp("tiny_gguf")
    return cache(lambda name, dtype: tiny.export_gguf(name, root / f"{name}-{dtype}.gguf", dtype))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct (Q4_1 GGUF), pulled as `treadle pull smollm2` does."""
    from treadle.formats import hub

    return hub.pull("smollm2").path


@pytest.fixture(scope="session")
def smollm2_oracle(smollm2: Path) -> PreTrainedModel:
    """transformers' model with the values of SmolLM2's file."""
    from tests.parity import oracles

    return oracles.llama_of_gguf(smollm2)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 (safetensors), pulled as `treadle pull minilm` does."""
    from treadle.formats import hub

    return hub.pull("minilm").path


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M (Q4_K_M GGUF), pulled as `treadle pull gemma3-270m` does."""
    from treadle.formats import hub

    return hub.pull("gemma3-270m").path
