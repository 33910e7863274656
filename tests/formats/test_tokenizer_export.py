"""Tokenizers on their way from Hugging Face into GGUF: the same ids and bytes afterwards, or a refusal by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from treadle import errors
from treadle.formats.gguf import GGUFFile
from treadle.formats.gguf_writer import GGUFWriter
from treadle.formats.tokenizer import Tokenizer as OurTokenizer
from treadle.formats.tokenizer_export import PROBE, tokenizer_metadata

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPECIAL = ["<|begin|>", "<|end|>"]
text = st.text(st.sampled_from("abe thn123 '\n\t.,!é你😀sS"), max_size=40)


def split(regex: str) -> pre_tokenizers.PreTokenizer:
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), whole])


SPLITS = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "smollm": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        False,
    ),
    "llama3": (split(LLAMA3), True),
    "dbrx": (split(LLAMA3), False),
    "qwen2": (split(QWEN2), False),
}


def byte_level(pre: pre_tokenizers.PreTokenizer, ignore_merges: bool = False) -> Tokenizer:
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([PROBE] * 3, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    made.add_tokens([AddedToken("<extra>", special=False)])
    return made


def sentencepiece(prefix: bool = True) -> Tokenizer:
    """Bytes, characters, and a piece for every join, whose merges rank by the piece as SentencePiece's scores do."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁aebthnsr"]
    joined = ["th", "▁a", "he", "the", "▁the", "en", "an", "▁an", "then", "▁then"]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *joined])}
    merges = [
        (piece[:i], piece[i:])
        for piece in joined
        for i in range(1, len(piece))
        if piece[:i] in vocabulary and piece[i:] in vocabulary
    ]
    merges.sort(key=lambda pair: (vocabulary[pair[0] + pair[1]], vocabulary[pair[0]], vocabulary[pair[1]]))
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    spaces = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([*steps, spaces]) if prefix else spaces
    tail = [decoders.Strip(" ", 1, 0)] if prefix else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail])
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def save(tokenizer: Tokenizer, folder: Path, bos: str = SPECIAL[0], eos: str = SPECIAL[1], **config: Any) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "eos_token": eos, **config}))
    return folder


def through_gguf(folder: Path, vocab_size: int) -> tuple[OurTokenizer, dict[str, Any]]:
    """The tokenizer that a reader makes of the written file, and the metadata."""
    metadata = tokenizer_metadata(folder, vocab_size)
    writer = GGUFWriter("any")
    for key, value in metadata.items():
        writer.add(key, value)
    writer.save(folder / "t.gguf")
    with GGUFFile.open(folder / "t.gguf") as file:
        return OurTokenizer.from_gguf(file.metadata), metadata


def edited(folder: Path, edit: Any) -> Path:
    file = json.loads((folder / "tokenizer.json").read_text())
    edit(file)
    (folder / "tokenizer.json").write_text(json.dumps(file))
    return folder


@pytest.mark.parametrize("name", SPLITS)
def test_byte_level(tmp_path: Path, name: str) -> None:
    original = byte_level(*SPLITS[name])
    ours, metadata = through_gguf(save(original, tmp_path, chat_template="{{ messages }}"), 520)
    assert metadata["tokenizer.ggml.pre"] == name
    assert metadata["tokenizer.chat_template"] == "{{ messages }}"
    assert (ours.bos_id, ours.eos_ids[0]) == tuple(map(original.token_to_id, SPECIAL))
    assert len(metadata["tokenizer.ggml.tokens"]) == 520
    assert metadata["tokenizer.ggml.token_type"].tolist().count(5) == 520 - original.get_vocab_size()
    assert original.token_to_id("<extra>") not in ours.special_ids

    @settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(text=text)
    def same(text: str) -> None:
        assert ours.encode(text) == original.encode(text).ids

    same()
    marked = "a<extra>b<|end|> c"
    assert ours.encode(marked) == original.encode(marked).ids


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    original = sentencepiece(prefix)
    ours, metadata = through_gguf(save(original, tmp_path, "<s>", "</s>"), original.get_vocab_size() + 3)
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.add_space_prefix"] is prefix
    assert metadata["tokenizer.ggml.unknown_token_id"] == 0
    assert metadata["tokenizer.ggml.token_type"].tolist()[:4] == [2, 3, 3, 6]

    @settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(text=st.text(st.sampled_from("thenars \n7é"), min_size=1, max_size=30))
    def same(text: str) -> None:
        assert ours.encode(text) == original.encode(text).ids
        assert ours.decode(ours.encode(text)) == text

    same()


def test_what_goes_around_a_text(tmp_path: Path) -> None:
    tokenizer = byte_level(*SPLITS["gpt-2"])
    begin, end = map(tokenizer.token_to_id, SPECIAL)
    special = [(SPECIAL[0], begin), (SPECIAL[1], end)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A <|end|>", special_tokens=special)
    ours, metadata = through_gguf(save(tokenizer, tmp_path), 520)
    assert metadata["tokenizer.ggml.add_bos_token"] is metadata["tokenizer.ggml.add_eos_token"] is True
    assert ours.encode("the") == [begin, *tokenizer.encode("the", add_special_tokens=False).ids, end]
    tokenizer.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=special)
    with pytest.raises(errors.UnsupportedModel, match="post_processor"):
        tokenizer_metadata(save(tokenizer, tmp_path), 520)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda file: file.update(normalizer={"type": "NFC"}), "normalizer 'NFC'"),
        (lambda file: file.update(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer step"),
        (lambda file: file.update(pre_tokenizer=None), "pre_tokenizer"),
        (lambda file: file["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="a+"), "patterns"),
        (lambda file: file["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "step"),
        (lambda file: file["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda file: file["model"].update(dropout=0.1), "dropout"),
        (lambda file: file["model"].update(merges=[]), "without merges"),
        (lambda file: file["model"].update(type="Unigram"), "'Unigram'"),
    ],
)
def test_refusals(tmp_path: Path, edit: Any, message: str) -> None:
    folder = edited(save(byte_level(*SPLITS["qwen2"]), tmp_path), edit)
    with pytest.raises(errors.UnsupportedModel, match=message):
        tokenizer_metadata(folder, 520)


def test_merges_that_no_scores_give_are_refused(tmp_path: Path) -> None:
    folder = edited(save(sentencepiece(), tmp_path, "<s>", "</s>"), lambda file: file["model"]["merges"].pop(3))
    with pytest.raises(errors.UnsupportedModel, match="does not follow from scores"):
        tokenizer_metadata(folder, 300)


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    folder = save(byte_level(*SPLITS["gpt-2"]), tmp_path)
    with pytest.raises(errors.InvalidFile, match="but the model has 400 rows"):
        tokenizer_metadata(folder, 400)
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(errors.InvalidFile):
        tokenizer_metadata(folder, 520)
