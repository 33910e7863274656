"""Records of what was run and who signed: one JSON object a line, each with the hash of the line before it.

A record that was edited, removed or put in between breaks the chain and is refused with its line. The chain tells
accidents and edits by hand; whoever can rewrite the whole file can forge it, so the file lives under version control.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from treadle.errors import InvalidRecord

FIRST: Final = "0" * 64
"""What the first record has for the hash of the one before."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """`number`: counted from 1. `commit` and `tree`: of the sources that it is about. `hash`: of all other fields."""

    number: int
    previous: str
    date: str
    phase: str
    commit: str
    tree: str
    hash: str = ""


class Evidence(Record, frozen=True, tag="evidence"):
    """A criterion's command was run. `output`: its last line."""

    criterion: str
    command: list[str]
    exit_code: int
    seconds: float
    output: str
    machine: str


class Signature(Record, frozen=True, tag="signature"):
    """A role signed a phase, on the evidence of these hashes."""

    role: str
    identity: str
    note: str
    evidence: list[str]


class Benchmark(Record, frozen=True, tag="benchmark"):
    """A model was measured. `plan`: the hash of its plan; `report`: all of it."""

    model: str
    plan: str
    machine: str
    isa: str
    report: dict[str, Any]


class Parity(Record, frozen=True, tag="parity"):
    """The parity matrix was run, all of it. `failed`: its cases, with their settings; `matrix`: hash of its file;
    `plans`, `weights`: one hash over those of all cases; `kernels`: by backend; `worst`: figures by setting;
    `versions`: of the oracle."""

    passed: int
    failed: list[str]
    matrix: str
    plans: str
    weights: str
    kernels: dict[str, str]
    worst: dict[str, dict[str, float]]
    versions: dict[str, str]
    machine: str


Entry = Evidence | Signature | Benchmark | Parity


class Ledger:
    """The records of one file, checked when it is opened. Raises InvalidRecord naming the line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Entry] = list(_read(path))

    def append(self, record: Entry) -> Entry:
        """Numbers, chains and writes a record. Raises InvalidRecord where another process wrote in the meantime."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if len(list(_read(self.path))) != len(self.records):
                raise InvalidRecord(f"{self.path}: another process wrote to it; run the command again")
            previous = self.records[-1].hash if self.records else FIRST
            chained = msgspec.structs.replace(record, number=len(self.records) + 1, previous=previous)
            chained = msgspec.structs.replace(chained, hash=digest(chained))
            file.write(msgspec.json.encode(chained) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(chained)
        return chained


def digest(record: Entry) -> str:
    """SHA-256 over every field but the hash itself."""
    content = msgspec.json.encode(msgspec.structs.replace(record, hash=""), order="sorted")
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> Iterator[Entry]:
    if not path.exists():
        return
    previous = FIRST
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        raise InvalidRecord(f"{path}: its last line is cut off")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record: Entry = msgspec.json.decode(line, type=Entry)
        except msgspec.MsgspecError as error:
            raise InvalidRecord(f"{path}:{number}: not a record: {error}") from None
        if record.hash != digest(record):
            raise InvalidRecord(f"{path}:{number}: altered: its content does not have the hash that it states")
        if (record.number, record.previous) != (number, previous):
            raise InvalidRecord(f"{path}:{number}: does not follow the record before it")
        previous = record.hash
        yield record
