"""WordPiece from GGUF metadata (model "bert"): llama.cpp writes word beginnings with a mark and drops BERT's "##"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors

from treadle.errors import InvalidFile

SPACE: Final = "\u2581"
CONTINUES: Final = "##"
UNKNOWN_TOKEN: Final = "[UNK]"


def wordpiece(tokens: Sequence[str], control: frozenset[int], cls: int, sep: int) -> tokenizers.Tokenizer:
    """BERT's tokenizer over the tokens as GGUF writes them: [CLS] text [SEP], and a second text [SEP] of type 1.

    `control`: ids that are matched in text as they stand. A vocabulary without capitals is an uncased one: text is put
    into lower case without accents, as transformers' BertTokenizer does by default. Raises InvalidFile.
    """
    pieces = [token if i in control else piece_of(token) for i, token in enumerate(tokens)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        repeated = next(piece for i, piece in enumerate(pieces) if vocabulary[piece] != i)
        raise InvalidFile(f"metadata tokenizer.ggml.tokens: {repeated!r:.80} appears twice")
    if UNKNOWN_TOKEN not in vocabulary:
        raise InvalidFile(f"metadata tokenizer.ggml.tokens: expected {UNKNOWN_TOKEN} among them")
    cased = any(token != token.lower() for i, token in enumerate(tokens) if i not in control)
    made = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN_TOKEN))
    made.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens([AddedToken(pieces[i], special=True, normalized=False) for i in sorted(control)])
    made.post_processor = processors.BertProcessing((pieces[sep], sep), (pieces[cls], cls))
    return made


def piece_of(token: str) -> str:
    return token.removeprefix(SPACE) if token.startswith(SPACE) else CONTINUES + token


def piece_bytes(token: str) -> bytes:
    """What a token stands for in decoded text: a space comes before a word."""
    return b" " + token.removeprefix(SPACE).encode() if token.startswith(SPACE) else token.encode()
