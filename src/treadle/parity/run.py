"""Runs cases of the matrix: the oracle once, then every backend and numerics, fed in four ways."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.errors import BackendUnavailable, InvalidRequest, TreadleError
from treadle.inference.llm import LLM
from treadle.parity.compare import agreement, noise, relative_error
from treadle.parity.matrix import Case, Defaults

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
)


def choose_settings(backend: str | None, numerics: str | None) -> tuple[Setting, ...]:
    """Those of a backend and numerics. Raises InvalidRequest where there is none."""
    found = tuple(s for s in SETTINGS if backend in (None, s.backend) and numerics in (None, s.numerics))
    if not found:
        raise InvalidRequest(f"backend {backend} has no {numerics} numerics")
    return found


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
    positions: int = 0
    plan_hash: str = ""
    seconds: float = 0.0
    status: str = "passed"
    message: str = ""


def run_cases(
    cases: Sequence[Case],
    defaults: Defaults,
    settings: Sequence[Setting] = SETTINGS,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[CaseReport]:
    """The reports, as they come. Raises BackendUnavailable where torch and transformers are not installed."""
    oracle = load_oracle()
    oracle.quiet()
    for case in cases:
        say(f"{case.family}/{case.name}: transformers")
        model = oracle.seeded_model(case.class_name, case.config, defaults.seed)
        prompts = random_prompts(defaults, model.config.get_text_config().vocab_size)
        expected = oracle.logits(model, prompts)
        with tempfile.TemporaryDirectory(prefix="treadle-parity-") as folder:
            for setting in settings:
                say(f"{case.family}/{case.name}: {' '.join(setting)}")
                path = Path(folder) / ("bf16" if setting.weights == "bf16" else "f32")
                if not path.exists():
                    oracle.save(model, path, path.name)
                yield run_case(case, defaults, setting, path, prompts, expected, threads)


def load_oracle() -> Any:
    try:
        from treadle.parity import oracle
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"parity compares with transformers, and {error.name} is not installed: run `make parity`, "
            "or `pip install treadle[parity]`"
        ) from None
    return oracle


def random_prompts(defaults: Defaults, vocab_size: int) -> list[list[int]]:
    random = np.random.default_rng(defaults.seed)
    return [random.integers(0, vocab_size, length).tolist() for length in defaults.lengths]


def run_case(
    case: Case,
    defaults: Defaults,
    setting: Setting,
    path: Path,
    prompts: Sequence[list[int]],
    expected: Sequence[F32],
    threads: int | None = None,
) -> CaseReport:
    """One setting of a case whose checkpoint is at `path`."""
    began = time.monotonic()
    report = CaseReport(family=case.family, case=case.name, **setting._asdict())
    try:
        with LLM(path, **engine_options(setting, len(prompts)), threads=threads) as llm:
            report.plan_hash = llm.info.plan_hash
            ways = feed(llm, prompts, defaults.chunks)
    except TreadleError as error:
        report.status, report.message = "failed", f"{type(error).__name__}: {error}"
    else:
        measure(report, case, defaults, ways, expected)
    report.seconds = round(time.monotonic() - began, 3)
    return report


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
        "decode": [llm.logits(first, chunk=1)],
    }
    for chunk in chunks:
        ways[f"chunks of {chunk}"] = [llm.logits(first, chunk=chunk)]
        ways[f"batch in chunks of {chunk}"] = llm.logits(every, chunk=chunk)
    return ways


def measure(
    report: CaseReport, case: Case, defaults: Defaults, ways: Mapping[str, Sequence[F32]], expected: Sequence[F32]
) -> None:
    """Fills in the figures and what they come to."""
    whole = ways["whole"]
    errors = {way: relative_error(found, expected[: len(found)]) for way, found in ways.items()}
    worst = max(errors, key=lambda way: errors[way])
    report.rel_err, report.noise = errors[worst], noise(whole, expected)
    report.positions = sum(len(logits) for logits in expected)
    fast = report.numerics == "fast"
    margin = getattr(defaults.margin, report.weights) if fast else 0.0
    report.top1, report.top1_all, report.decided = agreement(whole, expected, margin)
    problems = []
    if report.backend == "cpu":
        differing = [way for way, found in ways.items() if not same_bits(found, whole)]
        report.bitwise = not differing
        if differing:
            problems.append(f"{', '.join(differing)}: not the bits of whole prompts")
    if fast:
        allowed = getattr(defaults.noise, report.weights)
        if not report.noise < allowed:
            problems.append(f"noise {report.noise:.4f}, allowed {allowed}")
        if report.decided < defaults.decided:
            problems.append(f"{report.decided:.2f} of the positions are decided, at least {defaults.decided}")
        if report.top1 < defaults.top1:
            problems.append(f"top-1 agreement {report.top1:.4f}, at least {defaults.top1}")
    elif not report.rel_err < case.rel_err:
        problems.append(f"{worst}: relative error {report.rel_err:.2e}, allowed {case.rel_err:.0e}")
    if problems:
        report.status, report.message = "failed", "; ".join(problems)


def same_bits(found: Sequence[F32], whole: Sequence[F32]) -> bool:
    """Whether the first prompts' logits are those; the other way may have fed fewer."""
    return all(np.array_equal(a, b) for a, b in zip(found, whole, strict=False))
