"""How tokens spell bytes: the alphabet of byte-level BPE (GPT-2's bytes_to_unicode) and SentencePiece's <0x0A>."""

from __future__ import annotations

import re

__all__ = ["BYTE_OF_CHARACTER", "byte_level_bytes", "byte_token"]

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def _alphabet() -> dict[str, int]:
    """Character -> byte. Printable Latin-1 bytes stand for themselves, the others for U+0100 onwards, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _alphabet()


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for; a token with a character outside the alphabet stands for itself."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()


def byte_token(token: str) -> bytes | None:
    """ "<0x0A>" -> its byte; None for any other token."""
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else None
