"""The plan file: magic, contract version, canonical MessagePack, and the SHA-256 of all that.

    8 bytes   b"TREADLE\\0"
    4 bytes   contract version, u32 little-endian
    n bytes   ModelPlans as MessagePack (structs as arrays; it carries the compiler version and the config's hash)
    32 bytes  SHA-256 of everything before

One plan has one encoding: a file whose content would be encoded otherwise is refused.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from pathlib import Path
from typing import Final

import msgspec

from treadle.errors import InvalidPlan
from treadle.plan.ir import CONTRACT_VERSION, ModelPlans
from treadle.plan.upgrade import PUBLISHED, ParamVersions, upgrade_params
from treadle.plan.verify import verify

MAGIC: Final = b"TREADLE\0"
MAX_FILE_BYTES: Final = 16 << 20
_HEADER: Final = struct.Struct("<8sI")
_DIGEST_BYTES: Final = 32

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ModelPlans)


def encode(plans: ModelPlans, versions: ParamVersions = PUBLISHED) -> bytes:
    """The plan file's bytes. Raises InvalidPlan where the plan breaks the contract or a field has a wrong type."""
    try:
        payload = _encoder.encode(plans)
        same = _decoder.decode(payload) == plans
    except (TypeError, OverflowError, msgspec.MsgspecError) as error:
        raise InvalidPlan(f"the plan cannot be written: {error}") from error
    if not same:
        raise InvalidPlan("the plan cannot be written: a field's value is not of its declared type")
    verify(plans, versions)
    body = _HEADER.pack(MAGIC, CONTRACT_VERSION) + payload
    if len(body) + _DIGEST_BYTES > MAX_FILE_BYTES:
        raise InvalidPlan(f"the plan takes {len(body)} bytes; a plan file may have {MAX_FILE_BYTES}")
    return body + hashlib.sha256(body).digest()


def decode(data: bytes, versions: ParamVersions = PUBLISHED) -> ModelPlans:
    """The plans in a plan file, with params in their newest versions, verified.

    Raises InvalidPlan: damaged, of another kind, version or encoding.
    """
    plans = upgrade_params(decode_as_written(data), versions)
    verify(plans, versions)
    return plans


def contract_version(data: bytes) -> int:
    """The contract version of a plan file that is whole, known or not. Raises InvalidPlan."""
    if len(data) > MAX_FILE_BYTES:
        raise InvalidPlan(f"a plan file of {len(data)} bytes; at most {MAX_FILE_BYTES} are accepted")
    if len(data) < _HEADER.size + _DIGEST_BYTES or data[: len(MAGIC)] != MAGIC:
        raise InvalidPlan(f"not a plan file: it begins with {bytes(data[: len(MAGIC)])!r}, expected {MAGIC!r}")
    if hashlib.sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise InvalidPlan("the plan file is damaged: its content does not have the hash that it carries")
    version: int = _HEADER.unpack_from(data)[1]
    return version


def decode_as_written(data: bytes) -> ModelPlans:
    """The plans in a plan file with params in the versions that it holds, not verified. Raises InvalidPlan."""
    version = contract_version(data)
    if version != CONTRACT_VERSION:
        raise InvalidPlan(f"the plan file has contract version {version}; this release reads {CONTRACT_VERSION}")
    payload = data[_HEADER.size : -_DIGEST_BYTES]
    try:
        plans = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidPlan(f"the plan file breaks the schema: {error}") from error
    if _encoder.encode(plans) != payload:
        raise InvalidPlan("the plan file is not in canonical form")
    return plans


def plan_hash(plans: ModelPlans) -> str:
    """SHA-256, in hex, that the plan's file carries."""
    return encode(plans)[-_DIGEST_BYTES:].hex()


def save(plans: ModelPlans, path: Path, versions: ParamVersions = PUBLISHED) -> None:
    """Writes the plan file atomically: readers see the old file or the whole new one."""
    data = encode(plans, versions)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, versions: ParamVersions = PUBLISHED) -> ModelPlans:
    """Reads and verifies a plan file. Raises InvalidPlan, naming the file; OSError where it cannot be read."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    try:
        return decode(data, versions)
    except InvalidPlan as error:
        raise type(error)(f"{path}: {error}") from error
