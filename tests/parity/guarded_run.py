"""Run as a program: computes a ragged batch with every arena tight between pages that may not be touched.

Usage: python -m tests.parity.guarded_run CHECKPOINT NUMERICS THREADS. A read or write outside an arena is a crash.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
from numpy.typing import NDArray

import treadle.inference.executor as executor
from treadle.inference.llm import LLM
from treadle.inference.memory import aligned

PAGE = mmap.PAGESIZE
LENGTHS = (66, 1, 9, 65, 20, 3, 33, 7)


def guarded(nbytes: int, *, small_pages: int = 0) -> NDArray[np.uint8]:
    """As `memory.allocate`: an arena whose last 64-byte line ends where a page without access begins."""
    size = -(-nbytes // PAGE) * PAGE
    region = mmap.mmap(-1, size + 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(region, np.uint8)
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start in (0, PAGE + size):
        if protect(whole.ctypes.data + start, PAGE, 0) != 0:
            raise OSError("mprotect")
    start = PAGE + size - aligned(nbytes)
    return whole[start : start + nbytes]


def main(path: str, numerics: str, threads: str) -> None:
    executor.allocate = guarded
    prompts = [[(7 * i + j) % 250 + 3 for j in range(length)] for i, length in enumerate(LENGTHS)]
    with LLM(path, numerics=numerics, threads=int(threads), max_num_logits=512, max_model_len=66) as llm:
        for chunk in (None, 7):
            if not all(np.isfinite(logits).all() for logits in llm.logits(prompts, chunk=chunk)):
                sys.exit("a logit is not finite")


if __name__ == "__main__":
    main(*sys.argv[1:])
