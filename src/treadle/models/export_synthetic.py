"""A synthetic model as a GGUF file that other systems read too; its tokens mean nothing."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from treadle.formats.byte_level import BYTE_OF_CHARACTER
from treadle.formats.gguf_writer import GGUFWriter, Progress
from treadle.formats.synthetic import random_tensor
from treadle.models.export_gguf import FILE_TYPES
from treadle.models.synthetic import synthetic_tensors
from treadle.plan.ir import DType


def write_synthetic(model: str, path: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """The model that "synthetic:FAMILY:SHAPE:TYPE" describes, as a file. Raises as `synthetic_tensors`."""
    source = synthetic_tensors(model)
    metadata = dict(source.metadata)
    dtype = model.rpartition(":")[2].removesuffix("_m").upper()
    general = {"general.quantization_version": 2, "general.file_type": FILE_TYPES[DType[dtype]]}
    writer = GGUFWriter(str(metadata.pop("general.architecture")))
    for key, value in (metadata | general | _tokenizer(source.tensors["token_embd.weight"].shape[0])).items():
        writer.add(key, value)  # type: ignore[arg-type]
    for info in source.tensors.values():
        writer.add_made(info.name, partial(random_tensor, info.name, info.dtype, info.shape), info.dtype, info.shape)
    return writer.save(path, progress)


def _tokenizer(vocabulary: int) -> dict[str, object]:
    """Byte-level BPE: every byte, one merge (files without any are refused by some), fillers, an end token."""
    known = [*BYTE_OF_CHARACTER, "ĠĠ"]
    tokens = [*known, *(f"<filler {number}>" for number in range(vocabulary - len(known) - 1)), "<|endoftext|>"]
    normal, control, unused = 1, 3, 5
    types = [normal] * len(known) + [unused] * (vocabulary - len(known) - 1) + [control]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, dtype=np.int32),
        "tokenizer.ggml.merges": ["Ġ Ġ"],
        "tokenizer.ggml.bos_token_id": vocabulary - 1,
        "tokenizer.ggml.eos_token_id": vocabulary - 1,
        "tokenizer.ggml.padding_token_id": vocabulary - 1,
        "tokenizer.ggml.add_bos_token": False,
    }
