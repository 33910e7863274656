"""The first token of a fresh process, or an encoder's first vector: how long from its start, and what memory it took.

Run as a module (MODEL, and options of LLM as JSON) it is that process: loads the model as `treadle run` does, feeds a
prompt of 32 random tokens, prints an empty line once it has the token, and then one JSON object.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from treadle.errors import TreadleError

PROMPT_TOKENS = 32


def cold_start(model: str, options: Mapping[str, Any]) -> dict[str, float]:
    """Seconds and bytes of one fresh process; ``first_token_s`` runs from the moment it was started.

    ``options``: of LLM. Files that were read before are still in the system's page cache. Raises TreadleError if the
    process fails.
    """
    command = [sys.executable, "-m", "treadle.bench.first_token", model, json.dumps(options)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reached = process.stdout.readline()
        seconds = time.perf_counter() - began
        found = process.stdout.readline()
        _, errors = process.communicate()
    if process.returncode or not (reached and found):
        raise TreadleError(f"a fresh process did not reach its first token: {errors.strip()[-500:]}")
    return {"first_token_s": seconds, **json.loads(found)}


def main(model: str, options: str) -> None:
    from treadle.bench.measure import random_prompts
    from treadle.inference.encoder import Tokens
    from treadle.inference.llm import LLM
    from treadle.inference.memory import peak_rss_bytes
    from treadle.inference.request import SamplingParams

    with LLM(model, **json.loads(options)) as llm:
        (ids,) = random_prompts(llm.engine.plans.facts.vocab_size, 1, PROMPT_TOKENS)
        began = time.perf_counter()
        if llm.engine.encoder is not None:
            llm.engine.encoder.encode([Tokens(ids)])
        else:
            llm.generate({"prompt_token_ids": ids}, SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
        prefill_s = time.perf_counter() - began
        print(flush=True)
        found = {
            "load_s": llm.info.load_s,
            "prefill_s": prefill_s,
            "prompt_tokens": PROMPT_TOKENS,
            "quoted_bytes": llm.memory_quote.total_bytes,
            "peak_rss_bytes": peak_rss_bytes(),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
