"""mxfp4 tensors that a safetensors checkpoint keeps as two planes, read as the blocks that ggml keeps them in.

`NAME_blocks` u8 [..., blocks, 16] holds 32 codes of 4 bits a block, in order, the first of each two in the low bits;
`NAME_scales` u8 [..., blocks] the exponents (OCP Microscaling Formats, version 1.0; the checkpoints of gpt-oss).
"""

from __future__ import annotations

import numpy as np

from treadle.errors import InvalidWeights
from treadle.formats.mapped import Bytes, MappedFile
from treadle.formats.tensors import Container, TensorInfo, TensorSource, tensor_nbytes

__all__ = ["JoinedPlanes", "join_planes"]

CODES, SCALES = "_blocks", "_scales"


def join_planes(source: TensorSource) -> TensorSource:
    """The source with its pairs of planes as tensors `NAME` of type mxfp4; itself where it has none.

    Raises InvalidWeights for planes that do not fit each other.
    """
    names = set(source.names())
    stems = [name.removesuffix(CODES) for name in sorted(names) if name.endswith(CODES)]
    found = [stem for stem in stems if stem + SCALES in names and source.info(stem + CODES).dtype == "u8"]
    return JoinedPlanes(source, found) if found else source


class JoinedPlanes:
    """A ``TensorSource``; see `join_planes`."""

    def __init__(self, source: TensorSource, stems: list[str]) -> None:
        self._source = source
        self._joined = {stem: self._join(stem) for stem in stems}
        planes = {stem + plane for stem in stems for plane in (CODES, SCALES)}
        self._names = (*(name for name in source.names() if name not in planes), *self._joined)
        if len(set(self._names)) != len(self._names):
            raise InvalidWeights(f"a tensor of {', '.join(stems)} is there whole and as planes")

    @property
    def container(self) -> Container:
        return self._source.container

    @property
    def files(self) -> tuple[MappedFile, ...]:
        return self._source.files

    def names(self) -> tuple[str, ...]:
        return self._names

    def info(self, name: str) -> TensorInfo:
        return self._joined[name] if name in self._joined else self._source.info(name)

    def raw(self, name: str) -> Bytes:
        """As stored; of joined planes a new array: of a block first the scale, then bytes of codes j and j + 16."""
        if name not in self._joined:
            return self._source.raw(name)
        scales = self._source.raw(name + SCALES)
        codes = self._source.raw(name + CODES).reshape(len(scales), 16)
        pairs = np.stack((codes & 15, codes >> 4), axis=-1).reshape(len(scales), 2, 16)
        blocks = np.empty((len(scales), 17), np.uint8)
        blocks[:, 0] = scales
        blocks[:, 1:] = pairs[:, 0] | pairs[:, 1] << 4
        return blocks.reshape(-1)

    def drop(self, name: str) -> None:
        for stored in (name + CODES, name + SCALES) if name in self._joined else (name,):
            self._source.drop(stored)

    def close(self) -> None:
        self._source.close()

    def _join(self, stem: str) -> TensorInfo:
        codes, scales = self._source.info(stem + CODES), self._source.info(stem + SCALES)
        if not scales.shape or scales.dtype != "u8" or codes.shape != (*scales.shape, 16):
            raise InvalidWeights(
                f"tensors {codes.name} {codes.dtype} {list(codes.shape)} and {scales.name} {scales.dtype} "
                f"{list(scales.shape)}: expected u8 [..., blocks, 16] and u8 [..., blocks]"
            )
        shape = (*scales.shape[:-1], 32 * scales.shape[-1])
        return TensorInfo(stem, "mxfp4", shape, codes.offset, tensor_nbytes("mxfp4", shape), codes.part)
