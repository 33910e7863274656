"""The form of a parameter struct: four-byte fields, packed little-endian in order of declaration.

Every field is a u32 or f32; the payload is padded to eight bytes at the end.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Annotated, ClassVar, Self, get_type_hints

import msgspec

from treadle.errors import InvalidParamBlockABI
from treadle.plan.ir import Opcode, ParamBlock

MAX_PAYLOAD = 256
HEADER = struct.Struct("<BBHI")

U32 = Annotated[int, "I"]
F32 = Annotated[float, "f"]


class Params(msgspec.Struct, frozen=True):
    """Base of all parameter structs. `dims()` names the sizes that the op's shapes refer to."""

    OPCODE: ClassVar[Opcode]
    VERSION: ClassVar[int] = 1

    def dims(self) -> dict[str, int]:
        return {}

    def state_page_bytes(self, page_tokens: int) -> int:
        """Bytes of one page of this op's state; 0 for ops without state."""
        return 0

    def stateful(self) -> bool:
        """Whether an op that can keep state does with these params."""
        return True

    def pack(self) -> ParamBlock:
        values = [getattr(self, name) for name, _ in layout(type(self))]
        try:
            payload = _codec(type(self)).pack(*values)
        except struct.error as error:
            raise InvalidParamBlockABI(f"{self.OPCODE.name.lower()}: {error} in {self}") from None
        return ParamBlock(self.VERSION, self.OPCODE, payload)

    @classmethod
    def unpack(cls, block: ParamBlock) -> Self:
        codec = _codec(cls)
        if len(block.payload) != codec.size:
            raise InvalidParamBlockABI(
                f"{cls.OPCODE.name.lower()} params v{cls.VERSION}: payload of {len(block.payload)} bytes, "
                f"expected {codec.size}"
            )
        if any(block.payload[4 * len(cls.__struct_fields__) :]):
            raise InvalidParamBlockABI(f"{cls.OPCODE.name.lower()} params v{cls.VERSION}: padding is not zero")
        return cls(*codec.unpack(block.payload))


@cache
def layout(cls: type[Params]) -> tuple[tuple[str, str], ...]:
    """(field, struct format) in order; field i lies at byte 4*i."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple((name, hints[name].__metadata__[0]) for name in cls.__struct_fields__)


@cache
def _codec(cls: type[Params]) -> struct.Struct:
    fields = layout(cls)
    return struct.Struct("<" + "".join(code for _, code in fields) + ("4x" if len(fields) % 2 else ""))


def header(block: ParamBlock) -> bytes:
    """The eight bytes before the payload: u8 abi_version, u8 opcode, u16 payload_size, u32 zero."""
    return HEADER.pack(block.abi_version, block.opcode, len(block.payload), 0)
