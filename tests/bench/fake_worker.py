"""A worker of the peers' protocol that sleeps: what it does is in its first argument, before the protocol's own four.

"ok:SECONDS" a token; "no-load": fails to load; "no-decode": cannot decode; "dies": ends at its first decode.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench" / "peers"))
from worker import Job, serve


def load(job: Job) -> SimpleNamespace:
    print("a library's chatter, which must not reach the answers")
    if behaviour == "no-load":
        raise RuntimeError(f"cannot read {job.model}")

    def measure(name: str, tokens: int, batch: int, prompt: int) -> dict[str, float]:
        if name == "decode" and behaviour == "no-decode":
            raise ValueError("no decode here")
        if name == "decode" and behaviour == "dies":
            os._exit(7)
        os.write(1, b"more chatter\n")
        return {"seconds": float(seconds or 1) * tokens * batch}

    ran = ", ".join([job.model, f"{job.threads} threads", *([str(job.options)] if job.options else [])])
    return SimpleNamespace(version="fake 1", ran=ran, measure=measure)


behaviour, _, seconds = sys.argv.pop(1).partition(":")
serve(load)
