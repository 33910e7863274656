"""Config flips: every value of a family's config.json is set to something else, one at a time.

The model must then be refused by name, or give transformers' logits under the same flip; never be silently wrong.
Whether a key matters at all is not written down anywhere: the oracle's logits tell.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.errors import InvalidWeights, TreadleError
from treadle.inference.llm import LLM
from treadle.parity.compare import relative_error
from treadle.parity.matrix import Case, Defaults
from treadle.parity.outputs import LEAST_ID, encodes, outputs
from treadle.parity.run import Setting, engine_options, load_oracle, random_prompts

F32 = NDArray[np.float32]
Config = Mapping[str, Any]
SETTING: Final = Setting("cpu", "exact", "f32")
LENGTH: Final = 70
"""Tokens of the prompt: longer than the windows of the matrix and than a page of state."""
TOLERANCE: Final = 1e-3
"""Relative error up to which logits are right. A flip may make a model worse conditioned than the matrix's."""
MAX_ID: Final = 128
"""Ids of the prompt lie below: flips shrink vocabularies."""
UNHEARD_OF: Final = "unheard-of"


class Outcome(StrEnum):
    RIGHT = "right"
    """Transformers' logits under the same flip."""
    UNCHANGED = "unchanged"
    """The same, and transformers' logits are those without the flip."""
    REFUSED = "refused"
    """By an error that names the key, or the tensor that does not fit."""
    NO_ORACLE = "no oracle"
    """Transformers refuses it as well, or its logits are not finite: there is no right answer."""
    WRONG = "wrong"
    UNNAMED = "unnamed"
    """Refused by an error that names neither key nor tensor."""
    CRASHED = "crashed"
    """By an error that is not treadle's."""


FAULTS: Final = frozenset({Outcome.WRONG, Outcome.UNNAMED, Outcome.CRASHED})


class Flip(msgspec.Struct, frozen=True):
    """`path`: keys from the top of config.json to the value that is set."""

    path: tuple[str, ...]
    value: Any

    def applied(self, config: Config) -> dict[str, Any]:
        changed = copy.deepcopy(dict(config))
        inner = changed
        for key in self.path[:-1]:
            inner = inner[key]
        inner[self.path[-1]] = self.value
        return changed


class FlipReport(msgspec.Struct, frozen=True):
    family: str
    case: str
    key: str
    value: Any
    outcome: Outcome
    message: str = ""


def known_values(configs: Iterable[Config]) -> dict[str, list[Any]]:
    """Every value that a key has in any of the configs; of lists the elements."""
    found: dict[str, list[Any]] = {}
    for config in configs:
        for path, value in _leaves(config):
            for each in value if isinstance(value, list) else [value]:
                seen = found.setdefault(path[-1], [])
                if not any(_equal(each, other) for other in seen):
                    seen.append(each)
    return found


def flips(config: Config, known: Mapping[str, Sequence[Any]]) -> list[Flip]:
    """All flips of a config; `known` brings the values that keys have elsewhere."""
    found = [Flip((UNHEARD_OF,), 1)]
    for path, value in _leaves(config):
        for other in _others(value, known.get(path[-1], ())):
            found.append(Flip(path, other))
    for key, value in config.items():
        if isinstance(value, dict) and not all(name.isdigit() for name in value):
            found += [Flip((key,), None), Flip((key, UNHEARD_OF), 1.5)]
    return found


def _leaves(config: Config, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*above, key))
        elif not key.startswith("_"):
            yield (*above, key), value


def _others(value: Any, known: Sequence[Any]) -> list[Any]:
    """Other values for a key: of the same type, null, and whatever the key is elsewhere."""
    if value is None:
        made: list[Any] = [True, 16, 0.5]
    elif isinstance(value, bool):
        made = [not value, None]
    elif isinstance(value, int):
        made = [value + 1, 2 * value, value // 2, None]
    elif isinstance(value, float):
        made = [1.5 * value + 0.25, 0.0, None]
    elif isinstance(value, str):
        made = [UNHEARD_OF, None]
    elif isinstance(value, list):
        swaps = [[other, *value[1:]] for other in known if value and not _equal(other, value[0])]
        return [*swaps, value[:-1], None] if value else [None]
    else:
        made = [None]
    found: list[Any] = []
    for other in [*made, *known]:
        if not isinstance(other, list | dict) and not any(_equal(other, seen) for seen in [value, *found]):
            found.append(other)
    return found


def _equal(a: Any, b: Any) -> bool:
    """1, 1.0 and True are not the same JSON."""
    return type(a) is type(b) and a == b


def flips_of_family(
    configs: Mapping[str, Config], known: Mapping[str, Sequence[Any]], sample: int | None, seed: int
) -> list[tuple[str, Flip]]:
    """(case, flip): of its first case all flips; of the others those of the keys that they change. `sample`: so many,
    drawn by the seed."""
    first = next(iter(configs.values()))
    chosen: list[tuple[str, Flip]] = []
    for name, config in configs.items():
        alike = {key for key, value in config.items() if config is not first and _equal(value, first.get(key))}
        chosen += [(name, flip) for flip in flips(config, known) if flip.path[0] not in alike]
    if sample is None or sample >= len(chosen):
        return chosen
    random = np.random.default_rng(seed)
    return [chosen[i] for i in sorted(random.choice(len(chosen), sample, replace=False))]


def run_flips(
    cases: Sequence[Case],
    defaults: Defaults,
    sample: int | None = None,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[FlipReport]:
    """Reports of every family's flips, as they come. `sample`: flips a family. Raises as `run_cases`."""
    oracle = load_oracle()
    oracle.quiet()
    configs: dict[str, dict[str, Config]] = {}
    for case in cases:
        configs.setdefault(case.family, {})[case.name] = oracle.full_config(case.class_name, case.config)
    known = known_values(config for family in configs.values() for config in family.values())
    short = msgspec.structs.replace(defaults, lengths=(LENGTH,))
    classes = {case.family: case.class_name for case in cases}
    for family, of_family in configs.items():
        base: dict[str, F32] = {}
        (ids,) = random_prompts(short, MAX_ID, LEAST_ID if encodes(classes[family]) else 0)
        for name, flip in flips_of_family(of_family, known, sample, defaults.seed + len(family)):
            say(f"{family}/{name}: {'.'.join(flip.path)} = {json.dumps(flip.value)}")
            subject = Subject(classes[family], of_family[name], ids, defaults.seed)
            if name not in base:
                base[name] = subject.logits(subject.config)
            outcome, message = run_flip(subject, flip, base[name], threads)
            yield FlipReport(family, name, ".".join(flip.path), flip.value, outcome, message)


class Subject(NamedTuple):
    """What a flip is tried on."""

    class_name: str
    config: Config
    ids: list[int]
    seed: int

    def logits(self, config: Config, save_to: Path | None = None) -> F32:
        """Transformers', [len, vocab], with this config instead. Raises what transformers does."""
        found = load_oracle().logits_of_config(self.class_name, config, self.seed, [self.ids], save_to)
        return cast(F32, found[0])


def run_flip(subject: Subject, flip: Flip, base: F32, threads: int | None) -> tuple[Outcome, str]:
    """The outcome, and what was found; `base`: transformers' logits without the flip."""
    changed = flip.applied(subject.config)
    with tempfile.TemporaryDirectory(prefix="treadle-flip-") as folder:
        path = Path(folder)
        try:
            expected = subject.logits(changed, path)
            no_oracle = "" if np.isfinite(expected).all() else "transformers' logits are not finite"
        except Exception as error:
            expected, no_oracle = base, f"transformers: {type(error).__name__}: {error}"
        if not (path / "model.safetensors").exists():
            subject.logits(subject.config, path)
        (path / "config.json").write_text(json.dumps(changed))
        try:
            with LLM(path, **engine_options(SETTING, 1), threads=threads) as llm:
                (found,) = outputs(llm, [subject.ids])
        except TreadleError as error:
            named = isinstance(error, InvalidWeights) or names_a_key(str(error), changed) or names_a_tensor(str(error))
            return Outcome.REFUSED if named else Outcome.UNNAMED, f"{type(error).__name__}: {error}"
        except Exception as error:
            return Outcome.CRASHED, f"{type(error).__name__}: {error}"
    if no_oracle:
        return Outcome.NO_ORACLE, no_oracle
    if found.shape != expected.shape:
        return Outcome.WRONG, f"logits {found.shape}, transformers' {expected.shape}"
    error_found = relative_error([found], [expected])
    if not error_found < TOLERANCE:
        return Outcome.WRONG, f"relative error {error_found:.2e}"
    same = expected.shape == base.shape and relative_error([expected], [base]) < 1e-6
    return Outcome.UNCHANGED if same else Outcome.RIGHT, f"relative error {error_found:.2e}"


def names_a_tensor(message: str) -> bool:
    """Whether a message says which tensor does not go with the config."""
    return ": tensor '" in message


def names_a_key(message: str, config: Config) -> bool:
    """Whether a message says which key is wrong: the flipped one, or one that does not go with it."""
    keys = (part for path, _ in _leaves(config) for part in path)
    return any(f" {key}:" in message or f"'{key}'" in message for key in keys)
