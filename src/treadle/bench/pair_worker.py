"""One side of a comparison of two commits, in its own process: runs blocks of steps until stdin ends.

Run as a file, with the commit's sources: SOURCES MODEL THREADS NUMERICS MAX_BATCH MAX_LENGTH TOKENS. Lines of JSON:
first what was loaded, with the counts of a step. Then to each {"open": point} an empty object, once the sequences of
the point have had their prompts; to each {"steps": n} the next steps in seconds. Or "error".
Uses what any commit of the last months has, so that it can drive older sources than its own.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


class Blocks:
    """The point that is open, and its sequences."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._point: Any = None
        self._requests: list[Any] = []

    def open(self, point: dict[str, Any]) -> None:
        from treadle.bench.measure import random_prompts
        from treadle.bench.points import Point
        from treadle.inference.request import SamplingParams

        self.close()
        self._point = Point(**point)
        if self._point.name != "decode":
            return
        core = self._engine.core
        params = SamplingParams(temperature=0, max_tokens=self._point.tokens + self._point.batch + 8, ignore_eos=True)
        for prompt in random_prompts(core.vocab_size, self._point.batch, self._point.prompt):
            self._requests += core.add(prompt, params)
        while any(request.output_length == 0 for request in self._requests):
            core.step()

    def steps(self, count: int) -> list[float]:
        """Decodes `count` tokens of each sequence; of another point the whole of it, once."""
        from treadle.bench.measure import measure

        if self._point.name != "decode":
            return list(measure(self._engine, self._point).steps)
        core, seconds = self._engine.core, []
        for _ in range(count):
            core.step()
            if core.last_step.rows != self._point.batch:
                raise RuntimeError(f"a decode step of {core.last_step.rows} rows, expected {self._point.batch}")
            seconds.append(core.last_step.seconds)
        return seconds

    def close(self) -> None:
        for request in self._requests:
            self._engine.core.abort(request)
        self._requests = []


def facts(engine: Any) -> dict[str, Any]:
    """What was loaded, and the counts of a step."""
    from treadle.bench.measure import measure
    from treadle.bench.points import Point
    from treadle.inference.cost import counting

    encoder = engine.generator is None
    with counting(engine.encoder if encoder else engine.generator) as counters:
        measure(engine, Point("encode", 8, 1, 0) if encoder else Point("decode", tokens=8, batch=1, prompt=8))
    steps = 1 if encoder else 9  # the prompt's and eight decoded tokens'
    return {
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
        from treadle.bench.measure import open_engine

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
        say(facts(engine))
        blocks = Blocks(engine)
        for line in sys.stdin:
            asked = json.loads(line)
            if "open" in asked:
                blocks.open(asked["open"])
                say({})
            else:
                say({"steps": blocks.steps(asked["steps"])})
    except Exception as error:
        say({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


if __name__ == "__main__":
    main(*sys.argv[1:])
