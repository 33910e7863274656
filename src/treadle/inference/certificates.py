"""Certificates: records that a model on a backend agreed with its oracle, and the look-up of one for the model at hand.

A certificate names what was compared so that anything that could change a bit gives another name: the plan, the code
that computes, the content of the weights' files. At a start the content is known only if the weight cache has hashed
the files before; else they are told by path, inode, size and times, as there. Each file holds a hash of itself, which
finds accidents and edits, not forgery: who may write into the folder may write anything.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from treadle.inference.weight_file import Unusable, open_trusted, write_small

MAX_CERTIFICATES: Final = 4096
_MAX_BYTES: Final = 64 << 10


class Identity(msgspec.Struct, frozen=True):
    """What computes. `plan`, `kernels`: hex SHA-256 of the plan and of the backend's code; `quantize`: the type that
    matrices are encoded to on load; `source`: names the weights' files as they are on this disk."""

    plan: str
    kernels: str
    backend: str
    numerics: str
    quantize: str | None
    source: str

    @property
    def key(self) -> str:
        """Of all but the weights."""
        parts = (self.plan, self.kernels, self.backend, self.numerics, self.quantize)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A comparison that passed. `content`: hex SHA-256 of the weights' files; `versions`: of treadle and the oracle;
    `date`: UTC, ISO 8601; `digest`: hex SHA-256 of all other fields."""

    model: str
    identity: Identity
    content: str
    figures: dict[str, float]
    versions: dict[str, str]
    date: str
    digest: str = ""

    def sealed(self) -> Certificate:
        return msgspec.structs.replace(self, digest=self._digest())

    @property
    def sound(self) -> bool:
        return self.digest == self._digest()

    def _digest(self) -> str:
        rest = msgspec.structs.replace(self, digest="")
        return hashlib.sha256(msgspec.json.encode(rest, order="sorted")).hexdigest()


class CertificateStore:
    """A folder of certificates, one a file. Several processes may use it at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def keep(self, certificate: Certificate) -> Path:
        """Seals and writes it, whole or not at all; an older one of the same subject goes. Raises OSError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / f"{certificate.identity.key}-{certificate.content[:32]}.json"
        write_small(path, msgspec.json.format(msgspec.json.encode(certificate.sealed())))
        every = sorted(self.directory.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in every[MAX_CERTIFICATES:]:
            file.unlink(missing_ok=True)
        return path

    def find(self, identity: Identity, content: str | None) -> Certificate | None:
        """The certificate of a model; `content`: hash of its weights, where it is known. Never raises."""
        for path in self.directory.glob(f"{identity.key}-*.json"):
            try:
                found = _read(path)
            except FileNotFoundError:
                continue
            except (Unusable, OSError) as error:
                logging.getLogger("treadle").warning("certificate %s: %s; it does not count", path, error)
                continue
            same = found.identity.source == identity.source if content is None else found.content == content
            if same and found.identity.key == identity.key:
                return found
        return None


def code_hash(files: list[Path]) -> str:
    """Hex SHA-256 of the files that compute, in the order given."""
    found = hashlib.sha256()
    for file in files:
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def _read(path: Path) -> Certificate:
    """Raises Unusable for a file that is not a sound certificate, OSError."""
    descriptor = open_trusted(path)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(_MAX_BYTES)
    try:
        found = msgspec.json.decode(data, type=Certificate)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Unusable("is damaged") from None
    if not found.sound:
        raise Unusable("was changed after it was written")
    return found
