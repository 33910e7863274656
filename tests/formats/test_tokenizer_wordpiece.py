"""WordPiece out of GGUF metadata against the tokenizer.json that it was made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import encoders
from tests.formats.test_tokenizer_gguf import build

from treadle.errors import InvalidFile
from treadle.formats.tokenizer import Tokenizer

TEXTS = ["the sea", "Where is THE sea?", "", "é ü", "[SEP] the [MASK]", "naïve café 中文 sea.", "zzz the\tsea\n."]
NORMAL, CONTROL = 1, 3


def written(tokens: list[str]) -> list[str]:
    """As BertModel.set_vocab in llama.cpp's converter writes them."""
    return [
        token if token.startswith("[") else token[2:] if token.startswith("##") else f"\u2581{token}"
        for token in tokens
    ]


def load(tmp_path: Path, tokens: list[str], **ids: int) -> Tokenizer:
    kinds = [CONTROL if token.startswith("[") else NORMAL for token in tokens]
    return build(tmp_path, model="bert", tokens=tokens, token_type=kinds, **ids)


def vocabulary(path: Path) -> list[str]:
    found = encoders.tokenizer().get_vocab()
    return sorted(found, key=found.__getitem__)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Tokenizer, Tokenizer]:
    """(from GGUF, from tokenizer.json)"""
    encoders.tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokens = written(vocabulary(tmp_path))
    return load(tmp_path, tokens, cls_token_id=2, seperator_token_id=3), Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_both_containers_give_the_same_ids_and_text(text: str, pair: tuple[Tokenizer, Tokenizer]) -> None:
    gguf, json = pair
    assert gguf.encode(text) == json.encode(text)
    assert gguf.encode_typed(text, "the sea", 9) == json.encode_typed(text, "the sea", 9)
    for skip in (True, False):
        assert gguf.decode(json.encode(text), skip) == json.decode(json.encode(text), skip)


def test_a_vocabulary_with_capitals_keeps_them(tmp_path: Path) -> None:
    tokens = ["[UNK]", "[CLS]", "[SEP]", "\u2581Sea", "\u2581sea"]
    tokenizer = load(tmp_path, tokens, bos_token_id=1, seperator_token_id=2)
    assert tokenizer.encode("Sea sea SEA") == [1, 3, 4, 0, 2]


@pytest.mark.parametrize(
    ("tokens", "ids", "message"),
    [
        (["[CLS]", "[SEP]", "\u2581a"], {"cls_token_id": 0, "seperator_token_id": 1}, r"\[UNK\]"),
        (["[UNK]", "[CLS]", "[SEP]", "\u2581a", "\u2581a"], {"cls_token_id": 1, "seperator_token_id": 2}, "twice"),
        (["[UNK]", "[CLS]", "[SEP]", "\u2581a"], {"seperator_token_id": 2}, "below 4, found 101"),
        (["[UNK]", "[CLS]", "[SEP]", "\u2581a"], {"cls_token_id": 9}, "cls_token_id"),
    ],
)
def test_damaged_vocabularies(tmp_path: Path, tokens: list[str], ids: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidFile, match=message):
        load(tmp_path, tokens, **ids)
