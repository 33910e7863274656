"""Runs cases of the matrix: the oracle once, then every backend and numerics, fed in four ways."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.errors import BackendUnavailable, InvalidRequest, TreadleError
from treadle.inference.certificates import Identity
from treadle.inference.home import weight_cache
from treadle.inference.llm import LLM
from treadle.inference.weight_cache import content_name
from treadle.parity.compare import agreement, noise, relative_error, retrieval
from treadle.parity.matrix import Case, Defaults
from treadle.parity.outputs import LEAST_ID, encodes, feed_encoder
from treadle.parity.trace import TracePoint, against_oracle, between_ways, inspect

F32 = NDArray[np.float32]
MAX_ROWS: Final = 512
"""Rows of a step; more than all prompts have together, so that only `chunks` cut them."""


class Setting(NamedTuple):
    """What a case is run on. `weights`: how they are stored."""

    backend: str
    numerics: str
    weights: str


SETTINGS: Final = (
    Setting("reference", "exact", "f32"),
    Setting("cpu", "exact", "f32"),
    Setting("cpu", "fast", "bf16"),
    Setting("cpu", "fast", "q8_0"),
    Setting("cpu", "bf16", "q8_0"),
)


def choose_settings(backend: str | None, numerics: str | None) -> tuple[Setting, ...]:
    """Those of a backend and numerics. Raises InvalidRequest where there is none."""
    found = tuple(s for s in SETTINGS if backend in (None, s.backend) and numerics in (None, s.numerics))
    if not found:
        raise InvalidRequest(f"backend {backend} has no {numerics} numerics")
    return found


def settings_of(case: Case, settings: Sequence[Setting] = SETTINGS) -> list[Setting]:
    """Those that the case is run on."""
    return [setting for setting in settings if setting.numerics in case.numerics]


class CaseReport(msgspec.Struct, kw_only=True):
    """One case on one setting. matrix.toml says what the figures mean; `rel_err` is the worst of all ways."""

    family: str
    case: str
    backend: str
    numerics: str
    weights: str
    rel_err: float | None = None
    noise: float | None = None
    top1: float | None = None
    top1_all: float | None = None
    decided: float | None = None
    bitwise: bool | None = None
    """Whether all ways of feeding gave the same bits."""
    differing: list[str] = []
    """Those that did not."""
    positions: int = 0
    plan_hash: str = ""
    weights_hash: str = ""
    identity: Identity | None = None
    seconds: float = 0.0
    status: str = "passed"
    message: str = ""
    diverges: str = ""
    """The first instruction that does, in words; of a case that failed, or was traced."""
    trace: list[TracePoint] = []


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to compare: transformers' own, what it gives for the prompts, and a checkpoint of it for a setting."""

    family: str
    case: str
    rel_err: float
    model: Any
    prompts: Sequence[list[int]]
    expected: Sequence[F32]
    encodes: bool
    checkpoint: Callable[[Setting], Path]


def run_cases(
    cases: Sequence[Case],
    defaults: Defaults,
    settings: Sequence[Setting] = SETTINGS,
    threads: int | None = None,
    trace: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[CaseReport]:
    """The reports, as they come; `trace`: with every instruction compared, not only where a case fails.

    Raises BackendUnavailable where torch and transformers are not installed.
    """
    oracle = load_oracle()
    oracle.quiet()
    for case in cases:
        say(f"{case.family}/{case.name}: transformers")
        with tempfile.TemporaryDirectory(prefix="treadle-parity-") as folder:
            subject = matrix_subject(case, defaults, Path(folder))
            for setting in settings_of(case, settings):
                say(f"{case.family}/{case.name}: {' '.join(setting)}")
                yield run_subject(subject, defaults, setting, threads, trace)


def matrix_subject(case: Case, defaults: Defaults, folder: Path) -> Subject:
    """The seeded model of a case; its checkpoints are written into `folder` when they are asked for."""
    oracle = load_oracle()
    model = oracle.seeded_model(case.class_name, case.config, defaults.seed)
    encoder = encodes(case.class_name)
    least = LEAST_ID if encoder else 0
    prompts = random_prompts(defaults, model.config.get_text_config().vocab_size, least)

    def checkpoint(setting: Setting) -> Path:
        path = folder / ("bf16" if setting.weights == "bf16" else "f32")
        return path if path.exists() else cast(Path, oracle.save(model, path, path.name))

    expected = oracle.logits(model, prompts)
    return Subject(case.family, case.name, case.rel_err, model, prompts, expected, encoder, checkpoint)


def load_oracle() -> Any:
    try:
        from treadle.parity import oracle
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"parity compares with transformers, and {error.name} is not installed: run `make parity`, "
            "or `pip install treadle[parity]`"
        ) from None
    return oracle


def random_prompts(defaults: Defaults, vocab_size: int, least: int = 0) -> list[list[int]]:
    random = np.random.default_rng(defaults.seed)
    return [random.integers(least, vocab_size, length).tolist() for length in defaults.lengths]


def run_subject(
    subject: Subject, defaults: Defaults, setting: Setting, threads: int | None = None, trace: bool = False
) -> CaseReport:
    """One setting of a subject. A case that fails says where; `trace`: so does one that passes."""
    began = time.monotonic()
    report = CaseReport(family=subject.family, case=subject.case, **setting._asdict())
    options = {**engine_options(setting, len(subject.prompts)), "threads": threads}
    try:
        path = subject.checkpoint(setting)
        with LLM(path, **options) as llm:
            report.plan_hash, report.identity = llm.info.plan_hash, llm.info.identity
            report.weights_hash = weights_hash(llm)
            ways = (
                feed_encoder(llm, subject.prompts) if subject.encodes else feed(llm, subject.prompts, defaults.chunks)
            )
    except TreadleError as error:
        report.status, report.message = "failed", f"{type(error).__name__}: {error}"
    else:
        measure(report, subject, defaults, ways)
        if report.status == "failed" or trace:
            locate(report, subject, defaults, path, options)
    report.seconds = round(time.monotonic() - began, 3)
    return report


def weights_hash(llm: LLM) -> str:
    """Of the files' content, which the weight cache may know without reading them."""
    files = llm.engine.files
    return weight_cache().known_content(llm.info.identity.source) or content_name(files)


def engine_options(setting: Setting, sequences: int) -> dict[str, Any]:
    return {
        "backend": setting.backend,
        "numerics": setting.numerics,
        "quantize": setting.weights if setting.weights == "q8_0" else None,
        "max_num_seqs": sequences,
        "max_num_batched_tokens": MAX_ROWS,
        "max_num_logits": MAX_ROWS,
        "allow_per_slot": setting.backend == "reference",
        "weight_cache": False,
    }


def feed(llm: LLM, prompts: Sequence[list[int]], chunks: Sequence[int]) -> dict[str, list[F32]]:
    """Logits of the prompts by each way of feeding them; of the first alone in chunks and one by one."""
    first, every = prompts[0], [list(ids) for ids in prompts]
    ways = {
        "whole": [llm.logits(ids) for ids in prompts],
        "batch": llm.logits(every),
    }
    for chunk in (1, *chunks):
        ways[alone(chunk)] = [llm.logits(first, chunk=chunk)]
        if chunk > 1:
            ways[f"batch in {alone(chunk)}"] = llm.logits(every, chunk=chunk)
    return ways


def alone(chunk: int) -> str:
    """The name of a way of feeding the first prompt."""
    return "decode" if chunk == 1 else f"chunks of {chunk}"


def measure(report: CaseReport, subject: Subject, defaults: Defaults, ways: Mapping[str, Sequence[F32]]) -> None:
    """Fills in the figures and what they come to."""
    whole, expected = ways["whole"], subject.expected
    errors = {way: relative_error(found, expected[: len(found)]) for way, found in ways.items()}
    worst = max(errors, key=lambda way: errors[way])
    report.rel_err, report.noise = errors[worst], noise(whole, expected)
    report.positions = sum(map(len, subject.prompts))
    rounds = report.numerics != "exact"
    if subject.encodes:
        report.top1 = report.top1_all = retrieval(whole, expected)
    else:
        margin = defaults.margin * report.noise if rounds else 0.0
        report.top1, report.top1_all, report.decided = agreement(whole, expected, margin)
    problems = []
    if report.backend == "cpu":
        report.differing = [way for way, found in ways.items() if not same_bits(found, whole)]
        report.bitwise = not report.differing
        if report.differing:
            problems.append(f"{', '.join(report.differing)}: not the bits of whole prompts")
    if rounds:
        allowed = defaults.noise.of(report.numerics, report.weights)
        if not report.noise < allowed:
            problems.append(f"noise {report.noise:.4f}, allowed {allowed}")
        if report.decided is not None and report.decided < defaults.decided:
            problems.append(f"{report.decided:.2f} of the positions are decided, at least {defaults.decided}")
        if report.top1 is not None and report.top1 < defaults.top1:
            problems.append(f"top-1 agreement {report.top1:.4f}, at least {defaults.top1}")
    elif not report.rel_err < subject.rel_err:
        problems.append(f"{worst}: relative error {report.rel_err:.2e}, allowed {subject.rel_err:.0e}")
    if problems:
        report.status, report.message = "failed", "; ".join(problems)


def locate(report: CaseReport, subject: Subject, defaults: Defaults, path: Path, options: Mapping[str, Any]) -> None:
    """Fills in the first instruction that diverges: between two ways of feeding, or from transformers."""
    ids = subject.prompts[0]
    run = inspect(path, options, ids)
    chunk = next((chunk for chunk in (1, *defaults.chunks) if alone(chunk) in report.differing), None)
    if chunk is not None:
        found = between_ways(run, inspect(path, options, ids, chunk))
    else:
        allowed = defaults.noise.of(report.numerics, report.weights)
        tolerance = subject.rel_err if report.numerics == "exact" else 3 * allowed
        found = against_oracle(run, load_oracle(), subject.model, ids, tolerance)
    report.diverges, report.trace = "" if found.first is None else str(found), list(found.points)


def same_bits(found: Sequence[F32], whole: Sequence[F32]) -> bool:
    """Whether the first prompts' logits are those; the other way may have fed fewer."""
    return all(np.array_equal(a, b) for a, b in zip(found, whole, strict=False))
