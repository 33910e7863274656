"""treadle under measurement, through the same protocol as its peers; its answers also tell the work of the point."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker import Job, serve

import treadle
from treadle.bench.measure import measure, open_engine
from treadle.bench.points import Point
from treadle.inference.options import DEFAULT_KV_DTYPES


class Treadle:
    def __init__(self, job: Job) -> None:
        numerics = job.options.get("numerics", "fast")
        self.engine = open_engine(
            job.model, threads=job.threads, numerics=numerics, max_batch=job.max_batch, max_length=job.max_length
        )
        self.version = f"treadle {treadle.__version__}"
        kv_dtype = DEFAULT_KV_DTYPES[numerics]
        self.ran = f"{Path(job.model).name}, {self.engine.info.isa}, {numerics}, keys and values {kv_dtype}"

    def measure(self, **point: Any) -> dict[str, Any]:
        found = measure(self.engine, Point(**point))
        return {"seconds": found.seconds, "work": asdict(found.work)}


if __name__ == "__main__":
    serve(Treadle)
