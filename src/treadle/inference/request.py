"""What a caller asks and gets: sampling parameters, the plain state of a request, and its outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import msgspec

from treadle.errors import InvalidRequest, TreadleError
from treadle.inference.edits import LogitEdits, SeenTokens
from treadle.inference.sinks import LogitSink
from treadle.inference.text import OutputText

GREEDY_BELOW: Final = 1e-5
MAX_LOGPROBS: Final = 20
MAX_STOPS: Final = 64
MAX_STOP_LENGTH: Final = 1024

_INF = math.inf
_NUMBERS: Final[dict[str, tuple[type, float, float, str]]] = {
    "n": (int, 1, 128, "[1, 128]"),
    "temperature": (float, 0.0, 1e6, "[0, 1e6]"),
    "top_p": (float, 5e-324, 1.0, "(0, 1]"),
    "top_k": (int, -1, _INF, "-1 or 0 (all), or >= 1"),
    "min_p": (float, 0.0, 1.0, "[0, 1]"),
    "repetition_penalty": (float, 5e-324, 1e6, "(0, 1e6]"),
    "presence_penalty": (float, -2.0, 2.0, "[-2, 2]"),
    "frequency_penalty": (float, -2.0, 2.0, "[-2, 2]"),
    "seed": (int, -(2**63), 2**64 - 1, "a 64-bit integer"),
    "max_tokens": (int, 1, _INF, ">= 1"),
    "min_tokens": (int, 0, _INF, ">= 0"),
    "logprobs": (int, 0, MAX_LOGPROBS, f"[0, {MAX_LOGPROBS}]"),
}
"""field -> (type, least, greatest, range in words)."""
_OPTIONAL: Final = frozenset({"seed", "max_tokens", "logprobs"})
_FLAGS: Final = ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output")


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen and when to stop; names, meanings and defaults as in vLLM.

    Order of processing: logit_bias, min_tokens, repetition / frequency / presence penalties, temperature, min_p,
    top_k, top_p. `temperature` under 1e-5 is greedy. With a `seed` a token depends on nothing but its logits, these
    parameters, its completion's index and its place in the output. `max_tokens` None: up to the model's length.
    `logprobs` n: the n most probable tokens and the chosen one, from the unprocessed logits. Raises InvalidRequest
    naming the field.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            _check_number(name, getattr(self, name))
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequest(f"{name} must be a bool, found {getattr(self, name)!r}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(_sequence("stop", self.stop))
        msgspec.structs.force_setattr(self, "stop", _checked_stops(stops))
        ids = tuple(_sequence("stop_token_ids", self.stop_token_ids))
        msgspec.structs.force_setattr(self, "stop_token_ids", tuple(_token_id("stop_token_ids", i) for i in ids))
        if self.logit_bias is not None:
            msgspec.structs.force_setattr(self, "logit_bias", _checked_bias(self.logit_bias))

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop or ())

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def changes_logits(self) -> bool:
        return self.penalises or self.min_tokens > 0 or bool(self.logit_bias)


def _check_number(name: str, value: Any) -> None:
    kind, low, high, words = _NUMBERS[name]
    if value is None and name in _OPTIONAL:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise InvalidRequest(f"{name} must be {'a number' if kind is float else 'an integer'}, found {value!r}")
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be {words}, found {value!r}")


def _sequence(name: str, value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidRequest(f"{name} must be a list, found {value!r}")
    return value


def _checked_stops(stops: tuple[Any, ...]) -> tuple[str, ...]:
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"stop takes at most {MAX_STOPS} strings, found {len(stops)}")
    for text in stops:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
            raise InvalidRequest(f"stop: every string must have 1 to {MAX_STOP_LENGTH} characters, found {text!r:.80}")
    return stops


def _token_id(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise InvalidRequest(f"{name}: {value!r} is not a token id")
    return value


def _checked_bias(bias: Any) -> dict[int, float]:
    if not isinstance(bias, dict):
        raise InvalidRequest(f"logit_bias must map token ids to numbers, found {bias!r:.80}")
    checked = {}
    for token, value in bias.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -100 <= value <= 100:
            raise InvalidRequest(f"logit_bias[{token!r}] must be in [-100, 100], found {value!r}")
        checked[_token_id("logit_bias", token)] = float(value)
    return checked


class FinishReason(Enum):
    STOP = "stop"
    """An end-of-sequence token, a stop id or a stop string."""
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class RequestStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class RequestMetrics(msgspec.Struct):
    """Seconds on the monotonic clock, None where not reached."""

    arrival_s: float
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    preemptions: int = 0

    @property
    def prefill_s(self) -> float:
        """From the first step that held the request to its first token."""
        if self.first_scheduled_s is None or self.first_token_s is None:
            return 0.0
        return self.first_token_s - self.first_scheduled_s

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        if self.first_token_s is None or self.finished_s is None:
            return 0.0
        return self.finished_s - self.first_token_s


class Logprob(msgspec.Struct, frozen=True):
    """`logprob`: natural log; `rank`: 1 for the most probable token."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True, eq=False)
class Request:
    """One sequence in work. Plain state: the scheduler moves it, the engine fills it."""

    id: int
    group: int
    """The call's request that this is one of the `n` completions of."""
    prompt_token_ids: list[int]
    params: SamplingParams
    max_length: int
    """Tokens (prompt + output) at which generation ends."""
    stop_ids: frozenset[int]
    """Ids that end the output: end-of-sequence (unless ignored) and stop_token_ids."""
    seed: int
    metrics: RequestMetrics
    index: int = 0
    """Which of its group's completions this is."""
    chunk: int | None = None
    """Most prompt rows a step; None: as many as the step admits."""
    sink: LogitSink | None = None
    """Takes the logits of the prompt's positions; then nothing is generated."""

    status: RequestStatus = RequestStatus.WAITING
    slot: int = -1
    computed: int = 0
    """Leading tokens whose state is in the slot."""
    token_ids: list[int] = field(default_factory=list)
    """Prompt and output."""
    edits: LogitEdits | None = None
    """None where its logits are taken as they are."""
    output: OutputText | None = None
    """None where no text is made of the tokens."""
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: TreadleError | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)
        params = self.params
        if params.changes_logits:
            seen = SeenTokens(self.prompt_token_ids) if params.penalises else None
            self.edits = LogitEdits(params.logit_bias or {}, self.stop_ids, params.min_tokens, seen)
        if self.params.logprobs is not None:
            self.logprobs = []

    @property
    def pending(self) -> int:
        """Tokens still to be fed before the next one can be chosen."""
        return len(self.token_ids) - self.computed

    @property
    def output_length(self) -> int:
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[len(self.prompt_token_ids) :]

    @property
    def text(self) -> str:
        return "" if self.output is None else self.output.text

    @property
    def finished(self) -> bool:
        return self.status is RequestStatus.FINISHED


@dataclass(slots=True)
class CompletionOutput:
    """One completion. `token_ids` include the token that ended it; `text` does not show it."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    text_delta: str = ""
    """What `text` gained since the output before (streams)."""


@dataclass(slots=True)
class RequestOutput:
    """A prompt with its completions, cumulative; `metrics` are those of the first completion."""

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
