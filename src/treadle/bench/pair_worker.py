"""One side of a comparison of two commits, in its own process: answers points until stdin ends.

Run as a file, with the commit's sources: SOURCES MODEL THREADS NUMERICS MAX_BATCH MAX_LENGTH TOKENS. Lines of JSON:
first what was loaded, with the counts of a step; then the steps of each point read from stdin, in seconds. Or "error".
Uses what any commit of the last months has, so that it can drive older sources than its own.
"""

import json
import os
import sys
from pathlib import Path


def main(sources: str, model: str, threads: str, numerics: str, max_batch: str, max_length: str, tokens: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__module__", "").startswith("_frozen_importlib")]
    sys.path[0] = sources  # instead of this file's folder

    def say(answer: dict[str, object]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        from treadle import bench
        from treadle.bench.measure import measure, open_engine
        from treadle.bench.points import Point
        from treadle.inference.cost import counting

        if Path(sources).resolve() not in Path(bench.__file__).resolve().parents:
            raise RuntimeError(f"{bench.__file__} is not of {sources}")
        engine = open_engine(
            model,
            threads=int(threads) or None,
            numerics=numerics,
            max_batch=int(max_batch),
            max_length=int(max_length),
            tokens=int(tokens),
        )
        with counting(engine.core) as counters:
            measure(engine, Point("decode", tokens=8, batch=1, prompt=8))
        steps = 9  # the prompt's and eight decoded tokens'
        say(
            {
                "plan": engine.info.plan_hash,
                "isa": engine.info.isa,
                "threads": engine.info.threads,
                "dispatches": sum(counters.dispatches.values()) / steps,
                "launches": counters.launches / steps,
                "planned_bytes": counters.planned_bytes / steps,
                "per_slot_fallbacks": counters.per_slot_fallbacks,
                "memory_bytes": engine.memory_measured_bytes,
                "quoted_bytes": engine.memory_quote.total_bytes,
            }
        )
        for line in sys.stdin:
            say({"steps": list(measure(engine, Point(**json.loads(line))).steps)})
    except Exception as error:
        say({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


if __name__ == "__main__":
    main(*sys.argv[1:])
