"""OpenVINO GenAI under measurement: its continuous batching pipeline, stepped by hand."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from worker import Job, serve, token_ids

GIB = 1 << 30


class OpenVINO:
    """A pipeline with a KV cache for the job's sequences; whole prompts in one step."""

    def __init__(self, job: Job) -> None:
        rows = max(job.max_batch * job.max_length, 512)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = rows
        scheduler.max_num_seqs = job.max_batch
        scheduler.cache_size = max(1, -(-rows * 256 * 1024 // GIB))  # GiB; at most 256 KiB a token
        scheduler.enable_prefix_caching = False
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            job.model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": job.threads, **job.options}
        )
        self.vocab = len(self.pipeline.get_tokenizer().get_vocab())
        self.version = f"openvino-genai {openvino_genai.__version__.split('-')[0]}"
        self.ran = f"{Path(job.model).name} by its own GGUF reader, {job.options or 'default execution'}, its KV types"

    def measure(self, name: str, tokens: int, batch: int, prompt: int) -> dict[str, Any]:
        config = openvino_genai.GenerationConfig()
        config.do_sample, config.ignore_eos = False, True
        config.max_new_tokens = 1 if name == "prefill" else 1 + tokens
        handles = [
            self.pipeline.add_request(i, openvino.Tensor(np.array([ids], dtype=np.int64)), config)
            for i, ids in enumerate(token_ids(self.vocab, batch, tokens if name == "prefill" else prompt))
        ]
        start = time.perf_counter()
        self.pipeline.step()  # all prompts; gives the first token of each
        if name == "decode":
            start = time.perf_counter()
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        seconds = time.perf_counter() - start
        for handle in handles:
            (output,) = handle.read_all()
            if len(output.generated_ids) != config.max_new_tokens:
                raise RuntimeError(f"{len(output.generated_ids)} tokens generated, expected {config.max_new_tokens}")
        return {"seconds": seconds}


if __name__ == "__main__":
    serve(OpenVINO)
