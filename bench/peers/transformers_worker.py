"""transformers under measurement: torch on the CPU in bf16, the GGUF's weights dequantised by its own reader."""

import time
from pathlib import Path
from typing import Any

import torch
import transformers
from worker import Job, serve, token_ids


class Transformers:
    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        transformers.utils.logging.disable_progress_bar()
        path = Path(job.model)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.bfloat16,
            quantization_config=transformers.GgufConfig(dequantize=True),
        ).eval()
        self.vocab = self.model.config.vocab_size
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.ran = f"{path.name} dequantised to bf16, keys and values bf16"

    @torch.inference_mode()
    def measure(self, name: str, tokens: int, batch: int, prompt: int) -> dict[str, Any]:
        length = tokens if name == "prefill" else prompt
        ids = torch.tensor(token_ids(self.vocab, batch, length))
        start = time.perf_counter()
        output = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        current = output.logits[:, -1].argmax(-1, keepdim=True)
        if name == "prefill":
            return {"seconds": time.perf_counter() - start}
        start = time.perf_counter()
        for _ in range(tokens):
            output = self.model(input_ids=current, past_key_values=output.past_key_values, use_cache=True)
            current = output.logits[:, -1].argmax(-1, keepdim=True)
        return {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    serve(Transformers)
