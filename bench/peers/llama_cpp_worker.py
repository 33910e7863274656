"""llama.cpp and its fork ik_llama.cpp under measurement, each through the ctypes bindings of its own package."""

import ctypes
import importlib.metadata
import time
from pathlib import Path
from typing import Any

import numpy as np
from worker import Job, serve, token_ids

try:
    import llama_cpp as api

    PACKAGE = "llama-cpp-python"
except ImportError:
    from ik_llama_cpp import _ctypes_api as api

    PACKAGE = "ik-llama-cpp-python"

Rows = list[tuple[int, int, int, bool]]  # (token id, position, sequence, logits wanted)
MICRO_BATCH = 512


class Llama:
    """One model, and a context for each number of sequences."""

    def __init__(self, job: Job) -> None:
        if PACKAGE == "llama-cpp-python":
            self._quiet = api.llama_log_callback(lambda level, text, data: None)
            api.llama_log_set(self._quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        options = api.llama_model_default_params()
        if PACKAGE == "ik-llama-cpp-python":
            options.repack_tensors, options.use_mmap = True, False
        self.model = api.llama_model_load_from_file(job.model.encode(), options)
        if not self.model:
            raise RuntimeError(f"{PACKAGE} could not load {job.model}")
        self.job = job
        self.contexts: dict[int, Any] = {}
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(MICRO_BATCH, 0, 1)
        self.version = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
        self.ran = f"{Path(job.model).name}, keys and values f16"
        if PACKAGE == "ik-llama-cpp-python":
            self.ran += ", weights repacked at load, flash attention for one sequence"

    def open_context(self, sequences: int) -> None:
        """Takes the context with room for so many sequences, which is made when it is first asked for."""
        if sequences not in self.contexts:
            params = api.llama_context_default_params()
            params.n_ctx = sequences * (self.job.max_length + 32)
            params.n_batch = params.n_ubatch = MICRO_BATCH
            params.n_seq_max = sequences
            params.n_threads = params.n_threads_batch = self.job.threads
            if PACKAGE == "ik-llama-cpp-python" and sequences > 1:
                params.flash_attn = False  # aborts on several sequences in one batch
            self.contexts[sequences] = api.llama_init_from_model(self.model, params)
        self.context = self.contexts[sequences]
        if not self.context:
            raise RuntimeError(f"{PACKAGE} could not make a context of {sequences} sequences")

    def clear(self) -> None:
        if PACKAGE == "llama-cpp-python":
            api.llama_memory_clear(api.llama_get_memory(self.context), True)
        else:
            api.llama_kv_cache_clear(self.context)

    def step(self, rows: Rows) -> None:
        """One decode call on at most MICRO_BATCH rows."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wanted
        if api.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")

    def greedy(self, rows: range | list[int]) -> list[int]:
        """The likeliest token of each of the last step's rows; waits for the step."""
        return [
            int(np.ctypeslib.as_array(api.llama_get_logits_ith(self.context, row), (self.vocab,)).argmax())
            for row in rows
        ]

    def prefill(self, sequences: int, length: int) -> list[int]:
        """Fresh prompts of ``length`` tokens; returns the first greedy token of each sequence."""
        self.open_context(sequences)
        self.clear()
        first = []
        for sequence, ids in enumerate(token_ids(self.vocab, sequences, length)):
            for start in range(0, length, MICRO_BATCH):
                chunk = ids[start : start + MICRO_BATCH]
                self.step([(t, start + i, sequence, start + i == length - 1) for i, t in enumerate(chunk)])
            first += self.greedy([len(chunk) - 1])
        return first

    def measure(self, name: str, tokens: int, batch: int, prompt: int) -> dict[str, Any]:
        start = time.perf_counter()
        if name == "prefill":
            self.prefill(batch, tokens)
            return {"seconds": time.perf_counter() - start}
        current = self.prefill(batch, prompt)
        start = time.perf_counter()
        for step in range(tokens):
            self.step([(token, prompt + step, sequence, True) for sequence, token in enumerate(current)])
            current = self.greedy(range(batch))
        return {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    serve(Llama)
