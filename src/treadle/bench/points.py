"""What is measured: the points, the machine's limits, and a point's share of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """``tokens`` a sequence, for ``batch`` sequences at once, each after ``prompt`` tokens that are not measured."""

    name: str
    tokens: int
    batch: int
    prompt: int

    @property
    def label(self) -> str:
        return f"{self.name} {self.tokens}" + (f" x {self.batch}" if self.batch > 1 else "")

    @property
    def length(self) -> int:
        """Tokens a sequence has at the end."""
        return self.prompt + self.tokens


POINTS = (
    Point("prefill", tokens=512, batch=1, prompt=0),
    Point("decode", tokens=128, batch=1, prompt=128),
    Point("decode", tokens=64, batch=8, prompt=128),
    Point("decode", tokens=32, batch=32, prompt=128),
)
MAX_BATCH = max(point.batch for point in POINTS)
MAX_LENGTH = max(point.length for point in POINTS)


@dataclass(frozen=True)
class Limits:
    """What the machine can do with these threads: DRAM read in GB/s, int8 multiply and add in GOP/s (2 an FMA)."""

    read_gb_s: float
    int8_gop_s: float


@dataclass(frozen=True)
class Work:
    """What a point must at least move and calculate."""

    read_bytes: float
    operations: float

    def least_seconds(self, limits: Limits) -> float:
        """The time the machine's limits allow: the slower of reading and calculating (a roofline)."""
        return max(self.read_bytes / (limits.read_gb_s * 1e9), self.operations / (limits.int8_gop_s * 1e9))


@dataclass(frozen=True)
class Measurement:
    """``tokens`` in all came in ``seconds``."""

    point: Point
    tokens: int
    seconds: float
    work: Work

    @property
    def tok_s(self) -> float:
        return self.tokens / self.seconds

    def share_of_limit(self, limits: Limits) -> float:
        return self.work.least_seconds(limits) / self.seconds
