"""The files of sentence-transformers beside config.json: what is read, and that nothing else passes."""

from __future__ import annotations

import json

import pytest

from treadle.errors import InvalidFile, ModelNotFound, UnsupportedModel
from treadle.models.sentence import Sentence, read_sentence
from treadle.plan.params import Pooling

PACKAGE = "sentence_transformers.models."
CHAIN = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
MEAN = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def write(path, name, content):
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(content if isinstance(content, str) else json.dumps(content))


def make(path, chain=CHAIN, pooling=MEAN, **files):
    modules = [{"idx": i, "name": str(i), "path": p, "type": PACKAGE + kind} for i, (p, kind) in enumerate(chain)]
    write(path, "modules.json", modules)
    write(path, "1_Pooling/config.json", pooling)
    for name, content in files.items():
        write(path, f"{name}.json", content)
    return path


def test_no_modules_no_description(tmp_path):
    assert read_sentence(tmp_path) is None


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (MEAN, Pooling.MEAN),
        ({"word_embedding_dimension": 64, "pooling_mode_cls_token": True, "include_prompt": True}, Pooling.CLS),
        ({"word_embedding_dimension": 64, "pooling_mode_lasttoken": True}, Pooling.LAST),
        ({"embedding_dimension": 64, "pooling_mode": "mean"}, Pooling.MEAN),
        ({"embedding_dimension": 64, "pooling_mode": "lasttoken"}, Pooling.LAST),
    ],
)
def test_pooling(tmp_path, pooling, expected):
    assert read_sentence(make(tmp_path, pooling=pooling)) == Sentence(expected, True, 64)


def test_the_norm_may_be_missing_and_the_length_is_read(tmp_path):
    described = {"max_seq_length": 40, "do_lower_case": False}
    path = make(tmp_path, CHAIN[:2], sentence_bert_config=described)
    assert read_sentence(path) == Sentence(Pooling.MEAN, False, 64, 40)


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ({**MEAN, "pooling_mode_max_tokens": True}, "pooling_mode_mean_tokens, pooling_mode_max_tokens"),
        ({"word_embedding_dimension": 64, "pooling_mode_max_tokens": True}, "pooling: found 'pooling_mode_max_tokens'"),
        ({"word_embedding_dimension": 64}, "pooling: found None"),
        ({**MEAN, "pooling_mode_new": False}, "pooling_mode_new"),
        ({**MEAN, "pooling_mode_cls_token": 0}, "pooling_mode_cls_token"),
        ({"pooling_mode_mean_tokens": True}, "word_embedding_dimension"),
        ({"embedding_dimension": 64, "pooling_mode": "max"}, "pooling_mode: found 'max'"),
    ],
)
def test_poolings_that_are_refused(tmp_path, pooling, message):
    with pytest.raises(UnsupportedModel, match=message):
        read_sentence(make(tmp_path, pooling=pooling))


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([*CHAIN, ("3_Dense", "Dense")], "Transformer -> Pooling -> Normalize -> Dense is not supported"),
        ([CHAIN[0], ("1_Pooling", "WeightedLayerPooling")], "WeightedLayerPooling"),
        (CHAIN[1:], "Pooling -> Normalize"),
        ([CHAIN[0], ("../1_Pooling", "Pooling")], r"path: found '\.\./1_Pooling'"),
        ([CHAIN[0], ("/etc", "Pooling")], "path: found '/etc'"),
        ([("0_Transformer", "Transformer"), CHAIN[1]], "Transformer in '0_Transformer'"),
    ],
)
def test_chains_that_are_refused(tmp_path, chain, message):
    with pytest.raises(UnsupportedModel, match=message):
        read_sentence(make(tmp_path, chain))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("modules", {"idx": 0}, "a list of modules"),
        ("modules", [3], "a module"),
        ("modules", [{"type": "torch.nn.Linear", "path": ""}], "torch.nn.Linear"),
        ("sentence_bert_config", {"do_lower_case": True}, "do_lower_case"),
        ("sentence_bert_config", {"max_seq_length": 0}, "max_seq_length"),
        ("sentence_bert_config", {"max_seq_length": True}, "max_seq_length"),
        ("sentence_bert_config", {"tokenizer_args": {}}, "tokenizer_args"),
        ("config_sentence_transformers", {"default_prompt_name": "query"}, "default_prompt_name"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, message):
    path = make(tmp_path)
    write(path, f"{name}.json", content)
    with pytest.raises(UnsupportedModel, match=message):
        read_sentence(path)


def test_damaged_files(tmp_path):
    path = make(tmp_path)
    (path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ModelNotFound, match="1_Pooling"):
        read_sentence(path)
    write(path, "modules.json", "[{]")
    with pytest.raises(InvalidFile, match=r"modules\.json"):
        read_sentence(path)
