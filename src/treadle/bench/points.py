"""What is measured: the points, the machine's limits, and a point's share of them."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

STEP_ROWS: Final = 512
"""Rows of a step, as EngineOptions has them where nothing else is asked for."""


@dataclass(frozen=True)
class Point:
    """``tokens`` a sequence, for ``batch`` sequences at once, each after ``prompt`` tokens that are not measured.

    ``name``: "prefill", "decode", or of an encoder "encode".
    """

    name: str
    tokens: int
    batch: int
    prompt: int

    @property
    def label(self) -> str:
        if self.name != "decode":
            return f"{self.name} {self.tokens}" + (f" x {self.batch}" if self.batch > 1 else "")
        return f"decode at {self.prompt}" + (f" x {self.batch}" if self.batch > 1 else "")

    @property
    def length(self) -> int:
        """Tokens a sequence has at the end."""
        return self.prompt + self.tokens

    @property
    def lead(self) -> int:
        """Tokens that the first sequence may have more than the last once all have had their prompts: until then it
        gets one with each step, and those ahead take rows from the prompts."""
        return -(-self.batch * (self.prompt or self.tokens) // max(1, STEP_ROWS - self.batch))


KINDS: Final = ("prefill", "decode", "batch", "load")
LENGTHS: Final = (128, 512, 2048)
DEPTHS: Final = (128, 1024, 4096)
BATCHES: Final = (2, 4, 8, 16, 32)
BATCH_PROMPT: Final = 128
"""Tokens before the measured ones where several sequences are decoded together."""


def choose_points(
    kinds: Sequence[str] = KINDS,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[int] = DEPTHS,
    batches: Sequence[int] = BATCHES,
) -> tuple[Point, ...]:
    """Prefill of each length, decode of one sequence at each depth, decode of each number of sequences."""
    prefill = [Point("prefill", length, 1, 0) for length in lengths if "prefill" in kinds]
    decode = [Point("decode", _decoded(1), 1, depth) for depth in depths if "decode" in kinds]
    batch = [Point("decode", _decoded(count), count, BATCH_PROMPT) for count in batches if "batch" in kinds]
    return tuple(dict.fromkeys([*prefill, *decode, *batch]))


def for_encoder(points: Sequence[Point]) -> tuple[Point, ...]:
    """What stands for them where nothing is decoded: a text for a prefill, and as many short texts as sequences."""
    prefill = [Point("encode", point.tokens, 1, 0) for point in points if point.name == "prefill"]
    batch = [Point("encode", BATCH_PROMPT, point.batch, 0) for point in points if point.batch > 1]
    return tuple(dict.fromkeys([*prefill, *batch]))


def _decoded(batch: int) -> int:
    """Steps that are measured: fewer where each brings many tokens."""
    return 128 if batch < 8 else 64 if batch < 32 else 32


def add_point_arguments(
    parser: argparse.ArgumentParser, kinds: Sequence[str] = KINDS, **defaults: Sequence[int]
) -> None:
    """--points, --lengths, --depths and --batches, for `choose_points`; ``defaults`` by their names there."""
    parser.add_argument("--points", type=_kinds(kinds), default=tuple(kinds), metavar="KINDS", help=_list(kinds))
    for name, usual, what in (
        ("lengths", LENGTHS, "tokens of a prefill"),
        ("depths", DEPTHS, "tokens before a decoded sequence"),
        ("batches", BATCHES, "sequences decoded together"),
    ):
        values = defaults.get(name, usual)
        parser.add_argument(
            f"--{name}", type=_numbers, default=values, metavar="N,...", help=f"{what}: {_list(values)}"
        )


def _kinds(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def kinds(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        for kind in found:
            if kind not in known:
                raise argparse.ArgumentTypeError(f"{kind!r} is not one of {_list(known)}")
        return found

    return kinds


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from None
    if not all(1 <= number <= 1 << 20 for number in found):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers from 1 to {1 << 20}")
    return found


def _list(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


@dataclass(frozen=True)
class Limits:
    """What the machine can do with these threads: arithmetic in GOP/s (an FMA is two).

    ``read_gb_s``: reading what a decode step reads, again and again; a model that fits a cache is read from there.
    """

    read_gb_s: float
    int8_gop_s: float
    bf16_gop_s: float
    f32_gop_s: float

    @classmethod
    def best(cls, probes: "Sequence[Limits]") -> "Limits":
        """The most of each that a probe saw."""
        return cls(*(max(getattr(probe, name) for probe in probes) for name in asdict(probes[0])))

    def rounded(self) -> dict[str, float]:
        return {name: round(value, 2) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Work:
    """What a point must at least move and calculate."""

    read_bytes: float
    int8_operations: float
    bf16_operations: float = 0.0
    f32_operations: float = 0.0

    def least_seconds(self, limits: Limits) -> float:
        """The time the machine's limits allow: the slower of reading and calculating (a roofline)."""
        calculating = (
            self.int8_operations / limits.int8_gop_s
            + self.bf16_operations / limits.bf16_gop_s
            + self.f32_operations / limits.f32_gop_s
        )
        return max(self.read_bytes / limits.read_gb_s, calculating) / 1e9


@dataclass(frozen=True)
class Measurement:
    """``tokens`` in all came in ``steps``, each in seconds."""

    point: Point
    tokens: int
    steps: tuple[float, ...]
    work: Work

    @property
    def seconds(self) -> float:
        return sum(self.steps)

    @property
    def tok_s(self) -> float:
        return self.tokens / self.seconds

    def share_of_limit(self, limits: Limits) -> float:
        return self.work.least_seconds(limits) / self.seconds
