"""Tokenizers from tokenizer.json against the tokenizers library and transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tests import encoders
from tests.formats.test_tokenizer_gguf import TEXTS
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from treadle.errors import InvalidFile, InvalidRequest, ModelNotFound, UnsupportedModel
from treadle.formats.tokenizer import Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>"]


def byte_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_tokens([AddedToken("<tool name>", special=False)])
    return made


def sentencepiece_bpe() -> tokenizers.Tokenizer:
    """As transformers converts Llama 2's tokenizer."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, limit_alphabet=150, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    description = json.loads(made.to_str())
    description["added_tokens"] = [t for t in description["added_tokens"] if t["content"] in SPECIAL]
    return tokenizers.Tokenizer.from_str(json.dumps(description))


def metaspace_unigram() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator([text for text in TEXTS if text.isascii()], trainer)
    return made


MAKERS = {"byte level": byte_level, "sentencepiece": sentencepiece_bpe, "metaspace": metaspace_unigram}


@pytest.fixture(scope="module", params=MAKERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(ours, transformers' fast tokenizer) from one tokenizer.json."""
    directory = tmp_path_factory.mktemp("tokenizer")
    MAKERS[request.param]().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"), clean_up_tokenization_spaces=False
    )
    return Tokenizer.from_file(directory), theirs


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20].encode("unicode_escape").decode())
def test_agrees_with_transformers(text: str, pair: Any) -> None:
    ours, theirs = pair
    for add_special in (True, False):
        ids = ours.encode(text, add_special=add_special)
        assert ids == theirs.encode(text, add_special_tokens=add_special)
        if not text.startswith("  "):  # the library's Metaspace drops every space at the front, not only its own
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
            assert ours.decode(ids, skip_special=False) == theirs.decode(ids)


@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" aeinst1é日👍"), max_size=30))
def test_any_text_agrees_with_transformers(text: str, pair: Any) -> None:
    ours, theirs = pair
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    stream = ours.stream()
    assert "".join([*map(stream.push, ids), stream.finish()]) == ours.decode(ids)


def test_facts(pair: Any) -> None:
    ours, theirs = pair
    assert (ours.bos_id, ours.eos_ids, ours.special_ids) == (1, (2,), {0, 1, 2})
    assert ours.vocab_size == len(theirs)
    assert ours.token_text(2) == "</s>"
    assert ours.token_bytes(10**12) == ours.token_bytes(-1) == b""


def test_added_tokens_stand_for_their_text(tmp_path: Path) -> None:
    made = byte_level()
    made.add_tokens(["é and more"])  # in the byte alphabet é is byte E9
    made.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(tmp_path)
    assert ours.decode(ours.encode("a<tool name>é and more")) == "a<tool name>é and more"


def test_special_tokens_in_text(pair: Any) -> None:
    ours, _ = pair
    assert ours.encode("a</s>", add_special=False)[-1] == 2
    try:
        ids = ours.encode("a</s>", parse_special=False)
    except InvalidRequest as error:  # a Unigram model has no other way to spell it; it must not pass for the real one
        assert "'</s>'" in str(error)
    else:
        assert 2 not in ids
        assert ours.decode(ids) == "a</s>"


def test_word_piece_is_decoded(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "token": 1, "##izer": 2, "s": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    made.enable_truncation(2)
    made.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert ours.encode("tokenizer s token") == [1, 2, 3, 1], "a truncation in the file is not ours to make"
    assert ours.decode([1, 2, 3, 1]) == made.decode([1, 2, 3, 1]) == "tokenizer s token"


def test_end_ids_come_from_every_config(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 7, "bos_token_id": 1}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": null}')
    ours = Tokenizer.from_file(tmp_path)
    assert (ours.bos_id, ours.eos_ids) == (1, (5, 2, 7))


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A tokenizer.json with some of its top-level fields replaced."""

    def change(**fields: Any) -> Path:
        description = json.loads(byte_level().to_str())
        (tmp_path / "tokenizer.json").write_text(json.dumps({**description, **fields}))
        return tmp_path

    return change


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "x"}, "content": "y"}]},
        {"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": []}]},
    ],
)
def test_unknown_decoders_are_refused_by_name(decoder: dict[str, Any], changed: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedModel, match="decoder"):
        Tokenizer.from_file(changed(decoder=decoder))


@pytest.mark.parametrize(
    "fields",
    [
        {"model": {"type": "Nope"}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {"added_tokens": [{"id": "x", "content": "a"}]},
        {"added_tokens": 5},
        {"decoder": "x"},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    ],
)
def test_bad_files_are_refused(fields: dict[str, Any], changed: Callable[..., Path]) -> None:
    with pytest.raises(InvalidFile):
        Tokenizer.from_file(changed(**fields))


def test_a_subword_prefix_in_bpe_is_refused(changed: Callable[..., Path]) -> None:
    """The library aborts the whole process on some of these."""
    model = json.loads(byte_level().to_str())["model"] | {"continuing_subword_prefix": "\0"}
    with pytest.raises(UnsupportedModel, match="continuing_subword_prefix"):
        Tokenizer.from_file(changed(model=model))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        Tokenizer.from_file(tmp_path)
    for content in (b"", b"{", b"[]", b"\xff", b'{"a":' * 5000):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(InvalidFile):
            Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("config", ['{"eos_token_id": "2"}', '{"eos_token_id": [true]}', '{"eos_token_id": -1}', "[]"])
def test_bad_end_ids(config: str, tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text(config)
    with pytest.raises(InvalidFile, match=r"generation_config\.json"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("limit", [None, 5, 9, 30])
@pytest.mark.parametrize("second", [None, "the sea is wide", "a"])
def test_typed_pairs_as_transformers(second: str | None, limit: int | None, tmp_path: Path) -> None:
    """The truncation and padding that the file brings are not used; our own cuts as transformers does."""
    encoders.tokenizer().save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_file(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), model_max_length=10**6)
    texts = ("where is the sea?", second) if second else ("where is the sea?",)
    cut = {"truncation": "longest_first", "max_length": limit} if limit else {"truncation": False}
    expected = theirs(*texts, padding=False, return_token_type_ids=True, **cut)
    assert ours.encode_typed(texts[0], second, limit) == (expected["input_ids"], expected["token_type_ids"])
    assert ours.encode(texts[0]) == theirs(texts[0], truncation=False, padding=False)["input_ids"]


@pytest.mark.parametrize(("second", "limit"), [(None, 2), ("a", 3)])
def test_a_limit_without_room_is_refused(second: str | None, limit: int, tmp_path: Path) -> None:
    encoders.tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path)
    with pytest.raises(InvalidRequest, match=f"limit of {limit} tokens"):
        tokenizer.encode_typed("the sea", second, limit)
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        tokenizer.encode_typed("a", "\ud800")
    assert len(tokenizer.encode_typed("the sea", second)[0]) > limit
