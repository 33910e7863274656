"""What a model gives for a prompt: a decoder its logits at every position, an encoder one vector.

An encoder is a class of transformers without a head for tokens: its vector is the mean of its last rows, or what its
classification head says, behind the activation that sentence-transformers puts there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from treadle.inference.encoder import Tokens
from treadle.inference.llm import LLM

F32 = NDArray[np.float32]
ENCODERS: Final = ("Model", "ForMaskedLM", "ForSequenceClassification")
LEAST_ID: Final = 16
"""Ids of an encoder's prompts are no less: the padding token, which RoBERTa does not count as a position, is."""


def encodes(class_name: str) -> bool:
    """Whether a class of transformers is an encoder."""
    return class_name.endswith(ENCODERS) and not class_name.endswith("LMHeadModel")


def types_of(length: int) -> list[int]:
    """Token types of a prompt, where a model has them: its second half is the second of a pair."""
    return [int(2 * i >= length) for i in range(length)]


def outputs(llm: LLM, prompts: Sequence[Sequence[int]], chunk: int | None = None) -> list[F32]:
    """[positions, vocab] of each prompt, or of an encoder [1, width]; all in one batch."""
    encoder = llm.engine.encoder
    if encoder is None:
        return list(llm.logits([list(ids) for ids in prompts], chunk=chunk))
    vectors = encoder.encode([Tokens(list(ids), types_of(len(ids))) for ids in prompts])
    return list(vectors[:, None])


def feed_encoder(llm: LLM, prompts: Sequence[Sequence[int]]) -> dict[str, list[F32]]:
    """Vectors of the prompts by each way of feeding them."""
    return {
        "whole": [outputs(llm, [ids])[0] for ids in prompts],
        "batch": outputs(llm, prompts),
        "batch in reverse": outputs(llm, prompts[::-1])[::-1],
    }
