"""treadle under measurement, through the same protocol as its peers; its answers also tell the work of the point."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker import Job, serve

import treadle
from treadle.bench.measure import measure, open_engine
from treadle.bench.points import Point


class Treadle:
    def __init__(self, job: Job) -> None:
        numerics = job.options.get("numerics", "fast")
        self.engine = open_engine(
            job.model, threads=job.threads, numerics=numerics, max_batch=job.max_batch, max_length=job.max_length
        )
        self.version = f"treadle {treadle.__version__}"
        how = f"{self.engine.info.isa}, {numerics}, keys and values {self.engine.kv_dtype}"
        self.ran = f"{Path(job.model).name}, {how}"

    def measure(self, **point: Any) -> dict[str, Any]:
        found = measure(self.engine, Point(**point))
        return {"seconds": found.seconds, "work": asdict(found.work)}


if __name__ == "__main__":
    serve(Treadle)
