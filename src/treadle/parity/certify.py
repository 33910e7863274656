"""A user's own checkpoint beside transformers, and the record of a comparison that passed."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from treadle import __version__
from treadle.errors import InvalidRequest
from treadle.inference.certificates import Certificate
from treadle.inference.home import certificates
from treadle.parity.matrix import Defaults
from treadle.parity.outputs import LEAST_ID, encodes
from treadle.parity.run import CaseReport, Setting, Subject, load_oracle, random_prompts, run_subject

TEXT: Final = """\
The loom was older than the mill that held it. Each morning, before the river mist had lifted, Ines wound the bobbins,
checked the 24 heddles and set her foot on the treadle; by noon there were two metres of linen, grey as rain. "Count
again," her father would say, and she counted: 1, 2, 3, 5, 8, 13. She paid 17.50 EUR for thread on 3 March 1911.

def weave(warp, weft):
    return [[w if (i + j) % 2 else f for j, w in enumerate(warp)] for i, f in enumerate(weft)]

Le métier bat la mesure; der Faden läuft über die Rolle; 布はゆっくりと伸びる. What is the capital of France?
The capital of France is Paris, on the Seine. E = mc^2, and x -> x**2 + 1 has no real root. {"a": [true, null, -1.5e-3]}
"""
STORED: Final = "stored"


def run_checkpoint(
    path: Path,
    defaults: Defaults,
    settings: Sequence[Setting],
    threads: int | None = None,
    trace: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[CaseReport]:
    """The reports of a Hugging Face checkpoint's directory on each setting's backend and numerics, weights as stored.

    Raises InvalidRequest for what transformers cannot open, BackendUnavailable as `run_cases`.
    """
    if not (path / "config.json").is_file():
        raise InvalidRequest(f"{path}: expected a folder with config.json and safetensors")
    oracle = load_oracle()
    oracle.quiet()
    say(f"{path.name}: transformers")
    model = oracle.load(path)
    ids = oracle.token_ids(path, TEXT)
    encoder = encodes(type(model).__name__)
    prompts = random_prompts(defaults, model.config.get_text_config().vocab_size, LEAST_ID if encoder else 0)
    if ids is not None:
        prompts = [ids[9 * i : 9 * i + length] for i, length in enumerate(defaults.lengths)]
    expected = oracle.logits(model, prompts)
    subject = Subject(
        model.config.model_type, path.name, defaults.rel_err, model, prompts, expected, encoder, lambda setting: path
    )
    for setting in dict.fromkeys(setting._replace(weights=STORED) for setting in settings):
        say(f"{path.name}: {' '.join(setting)}")
        yield run_subject(subject, defaults, setting, threads, trace)


def record(report: CaseReport) -> Path:
    """Keeps a certificate of a report that passed; returns its file. Raises OSError."""
    assert report.status == "passed" and report.identity is not None
    figures = {name: getattr(report, name) for name in ("rel_err", "noise", "top1", "top1_all", "positions")}
    certificate = Certificate(
        model=f"{report.family}/{report.case}",
        identity=report.identity,
        content=report.weights_hash,
        figures={name: float(value) for name, value in figures.items() if value is not None},
        versions={"treadle": __version__, **load_oracle().versions()},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return certificates().keep(certificate)
