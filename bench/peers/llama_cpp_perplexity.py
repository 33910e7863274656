"""Perplexity by llama.cpp's own arithmetic over the windows of its perplexity tool; run it with the peer's venv.

usage: bench/peers/.venv-llama_cpp/bin/python bench/peers/llama_cpp_perplexity.py MODEL.gguf TEXT [CONTEXT] [THREADS]

Prints one JSON object with the names of `treadle perplexity --json`, for the comparison of the two.
"""

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp as api
import numpy as np


def main(path: str, text_path: str, context_size: int = 512, threads: int = 2) -> None:
    quiet = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(quiet, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp cannot load {path}")
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = context_size
    params.n_threads = params.n_threads_batch = threads
    context = api.llama_init_from_model(model, params)
    vocab = api.llama_model_get_vocab(model)
    tokens = tokenized(vocab, Path(text_path).read_bytes())
    first = context_size // 2
    scores = np.concatenate(
        [
            window_scores(context, vocab, tokens[begin : begin + context_size], first)
            for begin in range(0, len(tokens) - context_size + 1, context_size)
        ]
    )
    found = float(np.exp(-scores.mean()))
    error = found * float(scores.std(ddof=1)) / len(scores) ** 0.5
    windows = len(tokens) // context_size
    print(json.dumps({"perplexity": found, "stderr": error, "scored": len(scores), "windows": windows}))


def tokenized(vocab: object, text: bytes) -> list[int]:
    """Token ids with BOS if the model adds it; control tokens in the text are plain text."""
    room = len(text) + 8
    ids = (ctypes.c_int32 * room)()
    count = api.llama_tokenize(vocab, text, len(text), ids, room, True, False)
    return list(ids[:count])


def window_scores(context: object, vocab: object, window: list[int], first: int) -> np.ndarray:
    """Log-probabilities of the tokens behind position `first`, f64."""
    api.llama_memory_clear(api.llama_get_memory(context), True)
    if api.llama_vocab_get_add_bos(vocab):
        window = [api.llama_vocab_bos(vocab), *window[1:]]
    batch = api.llama_batch_init(len(window), 0, 1)
    batch.n_tokens = len(window)
    for i, token in enumerate(window):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 0
        batch.logits[i] = i >= first
    if api.llama_decode(context, batch) != 0:
        raise RuntimeError("llama_decode failed")
    size = api.llama_vocab_n_tokens(vocab)
    scores = []
    for i in range(first, len(window) - 1):
        row = np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), (size,)).astype(np.float64)
        row -= row.max()
        scores.append(row[window[i + 1]] - np.log(np.exp(row).sum()))
    api.llama_batch_free(batch)
    return np.array(scores)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
