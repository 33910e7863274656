"""All logits of token ids by llama.cpp in f32; run it with the peer's venv.

usage: bench/peers/.venv-llama_cpp/bin/python bench/peers/llama_cpp_logits.py MODEL.gguf IDS.json OUT.npy

IDS.json is a list of token ids, OUT.npy becomes f32 [ids, vocabulary]. Keys and values are kept as f32.
"""

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp as api
import numpy as np

F32 = 0
"""GGML_TYPE_F32."""


def main(path: str, ids_path: str, out_path: str) -> None:
    said = []
    log = api.llama_log_callback(lambda level, text, data: said.append(text.decode(errors="replace")))
    api.llama_log_set(log, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    if not model:
        errors = [line.strip() for line in said if "error" in line or "fail" in line]
        sys.exit(f"llama.cpp cannot load {path}: {'; '.join(errors)}")
    ids = json.loads(Path(ids_path).read_text())
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(len(ids), 64)
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = F32
    context = api.llama_init_from_model(model, params)
    if not context:
        sys.exit(f"llama.cpp cannot run {path}: {'; '.join(line.strip() for line in said[-4:])}")
    batch = api.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 0
        batch.logits[i] = True
    if api.llama_decode(context, batch) != 0:
        sys.exit(f"llama.cpp cannot decode {path}")
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), (size,)).copy() for i in range(len(ids))]
    np.save(out_path, np.stack(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
