"""The worker's side of the protocol: one system, in its own process and venv, measured point by point.

argv:   MODEL THREADS MAX_BATCH MAX_LENGTH [NAME=VALUE ...]: options that the system knows
stdout: first {"version": str, "ran": str}, once the model is loaded, or {"error": str}
stdin:  {"name": "prefill" | "decode", "tokens": int, "batch": int, "prompt": int}, one a line
stdout: {"seconds": float, ...} for each, the time of the prefill, or of the decode steps after an unmeasured prefill;
        or {"error": str}
What a library prints goes to stderr. Stands alone: nothing but the standard library.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Job:
    """What a worker is to hold: the model, with room for ``max_batch`` sequences of ``max_length`` tokens."""

    model: str
    threads: int
    max_batch: int
    max_length: int
    options: dict[str, str] = field(default_factory=dict)


class System(Protocol):
    version: str
    ran: str
    """What is measured: file, types of weights, keys and values, and options that are not the default."""

    def measure(self, name: str, tokens: int, batch: int, prompt: int) -> dict[str, Any]: ...


def serve(load: Callable[[Job], System]) -> None:
    """Answers points until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    model, threads, max_batch, max_length, *pairs = sys.argv[1:]
    options = dict(pair.split("=", 1) for pair in pairs)
    try:
        system = load(Job(model, int(threads), int(max_batch), int(max_length), options))
    except Exception as error:
        say({"error": _brief(error)})
        return
    say({"version": system.version, "ran": system.ran})
    for line in sys.stdin:
        try:
            say(system.measure(**json.loads(line)))
        except Exception as error:
            say({"error": _brief(error)})


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def token_ids(vocab: int, batch: int, length: int) -> list[list[int]]:
    """Seeded prompts that keep away from the ends of the vocabulary, where the special tokens are."""
    import random

    generator = random.Random(0)
    low, high = min(256, vocab // 4), vocab - min(256, vocab // 4)
    return [[generator.randrange(low, high) for _ in range(length)] for _ in range(batch)]
