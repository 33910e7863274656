"""llama.cpp under measurement: runs in the peer's own venv, reads one point a line, answers one time a line.

stdin:  {"name": "prefill" | "decode", "tokens": int, "batch": int, "prompt": int}
stdout: {"seconds": float}, the time of the prefill, or of the decode steps after an unmeasured prefill.
Usage: python llama_cpp_worker.py MODEL.gguf THREADS MAX_BATCH MAX_LENGTH
"""

import ctypes
import json
import sys
import time

import llama_cpp
import numpy as np

Rows = list[tuple[int, int, int, bool]]  # (token id, position, sequence, logits wanted)
MICRO_BATCH = 512


class Peer:
    """One model and one context of llama.cpp with room for ``max_batch`` sequences of ``max_length`` tokens."""

    def __init__(self, path: str, threads: int, max_batch: int, max_length: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp could not load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max_batch * max_length
        params.n_batch = params.n_ubatch = MICRO_BATCH
        params.n_seq_max = max_batch
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("llama.cpp could not make a context")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(MICRO_BATCH, 0, 1)

    def step(self, rows: Rows) -> None:
        """One decode call on at most MICRO_BATCH rows."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wanted
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_synchronize(self.context)

    def greedy(self, count: int) -> list[int]:
        """The likeliest token of each of the last step's ``count`` logit rows."""
        logits = llama_cpp.llama_get_logits(self.context)
        table = np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (count, self.vocab))
        return [int(token) for token in table.argmax(axis=1)]

    def prefill(self, sequences: int, length: int) -> list[int]:
        """Fresh prompts of ``length`` tokens; returns the first greedy token of each sequence."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        random = np.random.default_rng(0)
        first = []
        for sequence in range(sequences):
            ids = random.integers(100, self.vocab - 100, size=length)
            for start in range(0, length, MICRO_BATCH):
                chunk = ids[start : start + MICRO_BATCH]
                self.step([(int(t), start + i, sequence, start + i == length - 1) for i, t in enumerate(chunk)])
            first += self.greedy(1)
        return first

    def measure(self, name: str, tokens: int, batch: int, prompt: int) -> float:
        if name == "prefill":
            start = time.perf_counter()
            self.prefill(batch, tokens)
            return time.perf_counter() - start
        current = self.prefill(batch, prompt)
        start = time.perf_counter()
        for step in range(tokens):
            self.step([(token, prompt + step, sequence, True) for sequence, token in enumerate(current)])
            current = self.greedy(batch)
        return time.perf_counter() - start


def main() -> None:
    path, threads, max_batch, max_length = sys.argv[1:]
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    peer = Peer(path, int(threads), int(max_batch), int(max_length))
    peer.measure("prefill", 64, 1, 0)
    for line in sys.stdin:
        print(json.dumps({"seconds": peer.measure(**json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
