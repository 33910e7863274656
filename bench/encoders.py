"""MiniLM's embeddings beside transformers': texts a second, and how many times as fast, in one interleaved run.

    .venv/bin/python bench/encoders.py --threads 2 --turns 4

transformers runs as sentence-transformers runs it: torch in f32, batches of 32 texts sorted by length, padded. Needs
what `make parity` installs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import transformers

from treadle import LLM
from treadle.formats import hub

TEXT = "the sea is calm today and a man plays guitar while it rains in the north of the old town near some mill"
SIDES = {
    "f32": {},
    "bf16": {"numerics": "bf16"},
    "q8_0": {"quantize": "q8_0"},
}


def sets() -> dict[str, list[str]]:
    random = np.random.default_rng(0)

    def text(words: int) -> str:
        return " ".join(random.choice(TEXT.split(), words))

    return {
        "64 texts of 8 to 40 words": [text(n) for n in random.integers(8, 41, 64)],
        "8 texts of 200 words": [text(200) for _ in range(8)],
        "1 text of 12 words": [text(12)],
    }


def transformers_side(path: str, threads: int) -> Callable[[Sequence[str]], object]:
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path).eval()

    def embed(texts: Sequence[str]) -> object:
        ordered = sorted(texts, key=len, reverse=True)
        found = []
        with torch.inference_mode():
            for i in range(0, len(ordered), 32):
                batch = tokenizer(
                    ordered[i : i + 32], padding=True, truncation=True, max_length=256, return_tensors="pt"
                )
                rows, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None].float()
                found.append(torch.nn.functional.normalize((rows * mask).sum(1) / mask.sum(1), dim=1))
        return found

    return embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=4, help="the best of so many counts")
    options = parser.parse_args()
    path = str(hub.pull("minilm").path)
    sides = {"transformers": transformers_side(path, options.threads)}
    sides |= {name: LLM(path, threads=options.threads, **kinds).embed for name, kinds in SIDES.items()}
    for name, texts in sets().items():
        repeats = 20 if len(texts) == 1 else 1
        seconds: dict[str, float] = {}
        for turn in range(options.turns + 1):  # the first warms up
            for side, embed in sides.items():
                began = time.perf_counter()
                for _ in range(repeats):
                    embed(texts)
                taken = (time.perf_counter() - began) / repeats
                if turn:
                    seconds[side] = min(taken, seconds.get(side, taken))
        shown = ", ".join(
            f"{side} {len(texts) / taken:.0f}/s ({seconds['transformers'] / taken:.2f}x)"
            for side, taken in seconds.items()
        )
        print(f"{name}: {shown}")


if __name__ == "__main__":
    main()
