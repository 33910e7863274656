"""Runs a point on a loaded model, step by step, so that only the steps that belong to it are timed."""

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from treadle.bench.points import Measurement, Point, Work, for_encoder
from treadle.errors import InvalidRequest
from treadle.inference.encoder import Tokens
from treadle.inference.engine import describe, load
from treadle.inference.loaded import Engine
from treadle.inference.options import EngineOptions
from treadle.inference.request import SamplingParams

if TYPE_CHECKING:
    from treadle.inference.core import EngineCore, StepRecord
    from treadle.inference.request import Request

SPARE = 16
"""Tokens of a sequence beyond those of its point."""
PAGE = 64
"""A sequence's last page of state may be all but empty; pages hold at most so many tokens."""


def open_engine(
    model: str,
    *,
    threads: int | None,
    numerics: str,
    max_batch: int,
    max_length: int,
    tokens: int | None = None,
) -> Engine:
    """The model with room as `sizes` makes it. Raises InvalidRequest if the model's context is shorter, and whatever
    `load` raises."""
    options = EngineOptions(threads=threads, numerics=numerics, **sizes(max_batch, max_length, tokens))  # type: ignore[arg-type]
    return load(model, options)


def sizes(max_batch: int, max_length: int, tokens: int | None = None) -> dict[str, int]:
    """Options of an engine with room for ``max_batch`` sequences, each of up to ``max_length`` tokens, together
    ``tokens``."""
    return {
        "max_num_seqs": max_batch,
        "max_model_len": max_length + SPARE,
        "state_tokens": (tokens or max_batch * max_length) + max_batch * (SPARE + PAGE),
    }


def room(points: Sequence[Point]) -> dict[str, int]:
    """What `sizes` must make room for to run each of the points."""
    return {
        "max_batch": max(point.batch for point in points),
        "max_length": max(point.length + point.lead for point in points),
        "tokens": max(point.batch * (point.length + point.lead) for point in points),
    }


def points_of(model: str, points: Sequence[Point]) -> tuple[Point, ...]:
    """The points, or what stands for them where the model is an encoder. Raises as `describe`."""
    encodes = describe(model, EngineOptions()).plans.encode is not None
    return for_encoder(points) if encodes else tuple(points)


def measure(engine: Engine, point: Point) -> Measurement:
    """One run of the point on random tokens, greedy, end-of-sequence ignored."""
    if point.name == "encode":
        return _encode(engine, point)
    core = engine.core
    if core.unfinished:
        raise InvalidRequest("bench needs an engine without other requests")
    generated = point.tokens if point.name == "decode" else 0
    params = SamplingParams(temperature=0, max_tokens=generated + point.lead + SPARE, ignore_eos=True)
    prompts = random_prompts(core.vocab_size, point.batch, point.prompt or point.tokens)
    requests = [request for prompt in prompts for request in core.add(prompt, params)]
    try:
        records = _prefill(core, requests)
        if point.name == "prefill":
            counted = records
        else:
            counted = [_decode_step(core, point.batch) for _ in range(point.tokens)]
    finally:
        for request in requests:
            core.abort(request)
    return Measurement(
        point=point,
        tokens=point.tokens * point.batch,
        steps=tuple(record.seconds for record in counted),
        work=_work(engine, point, counted),
    )


def _encode(engine: Engine, point: Point) -> Measurement:
    """Texts that are packed into as few steps as they fit; each step reads all weights."""
    encoder = engine.embedder
    texts = [Tokens(ids) for ids in random_prompts(encoder.vocab_size, point.batch, point.tokens)]
    seconds = []
    began = time.perf_counter()
    for _ in encoder.steps(texts):
        ended = time.perf_counter()
        seconds.append(ended - began)
        began = ended
    cost, rows = engine.cost, point.tokens * point.batch
    work = Work(
        read_bytes=len(seconds) * cost.weight_bytes,
        int8_operations=rows * cost.row.int8,
        bf16_operations=rows * cost.row.bf16,
        f32_operations=rows * cost.row.f32,
    )
    return Measurement(point=point, tokens=rows, steps=tuple(seconds), work=work)


def random_prompts(vocab_size: int, count: int, length: int) -> list[list[int]]:
    """The same prompts every time."""
    generator = random.Random(0)
    return [[generator.randrange(vocab_size) for _ in range(length)] for _ in range(count)]


def _prefill(core: "EngineCore", requests: "list[Request]") -> "list[StepRecord]":
    """Steps until every request has its first token."""
    records = []
    while any(request.output_length == 0 for request in requests):
        core.step()
        records.append(core.last_step)
    return records


def _decode_step(core: "EngineCore", batch: int) -> "StepRecord":
    core.step()
    record = core.last_step
    if not record.slots == record.rows == batch:
        raise InvalidRequest(f"a decode step of {record.slots} slots and {record.rows} rows, expected {batch} of each")
    return record


def _work(engine: Engine, point: Point, records: "list[StepRecord]") -> Work:
    """Weights once a step; for each decoded row also the state of the tokens before it (on average half the growth)."""
    cost = engine.cost
    rows, sampled = sum(record.rows for record in records), sum(record.sampled for record in records)
    seen = point.batch * (point.prompt + point.tokens / 2) if point.prompt else 0
    return Work(
        read_bytes=len(records) * (cost.weight_bytes + seen * cost.state_bytes_per_token),
        int8_operations=rows * cost.row.int8 + sampled * cost.sampled_row.int8,
        bf16_operations=rows * cost.row.bf16 + sampled * cost.sampled_row.bf16,
        f32_operations=rows * cost.row.f32 + sampled * cost.sampled_row.f32,
    )
