"""`treadle onboard`: what is said of models that are known, nearly known and unknown, and the draft that it writes."""

import json
import shutil

import numpy as np
import pytest
from tests import tiny

from treadle.cli.main import main
from treadle.errors import InvalidFile, ModelNotFound, UnsupportedModel
from treadle.inference.llm import LLM
from treadle.models.onboard import examine


def changed(source, target, **values):
    """A copy of a checkpoint with other values in its config; None drops a key."""
    shutil.copytree(source, target)
    path = target / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return target


def fit(report, family):
    return next(fit for fit in report.fits if fit.family == family)


def test_a_known_model_is_supported(tiny_checkpoint, tiny_gguf):
    for path in (tiny_checkpoint("llama"), tiny_checkpoint("llama") / "config.json", tiny_gguf("llama", "Q8_0")):
        report = examine(path)
        assert report.supported
        assert (report.reason, report.fits, report.draft) == (None, [], None)


def test_another_name_of_a_known_layout_gives_a_draft_that_runs(tiny_checkpoint, tmp_path):
    path = changed(tiny_checkpoint("llama"), tmp_path / "m", model_type="smol-9", architectures=["Smol9ForCausalLM"])
    report = examine(path)
    assert report.reason == "'smol-9' is no known family"
    nearest = report.fits[0]
    assert (nearest.family, nearest.tensors_placed) == ("llama", report.tensors)
    assert not nearest.missing and not nearest.left_over and not nearest.unknown_keys and not nearest.refused
    draft = tmp_path / "smol9.py"
    draft.write_text(report.draft)
    ids = [5, 9, 2, 77, 31]
    with (
        LLM(path, numerics="exact", family_file=str(draft)) as mine,
        LLM(tiny_checkpoint("llama"), numerics="exact") as it,
    ):
        np.testing.assert_array_equal(mine.logits(ids), it.logits(ids))


def test_the_ops_and_the_slots_are_named(tiny_checkpoint, tmp_path):
    path = changed(tiny_checkpoint("llama-bias"), tmp_path / "m", model_type="other")
    rows = {(row.op, row.slot): row for row in fit(examine(path), "llama").placed}
    q = rows["multihead_attention", "q"]
    assert (q.tensors, q.shape, q.layers) == (["model.layers.{layer}.self_attn.q_proj.weight"], [64, 64], 3)
    assert ("multihead_attention", "q_bias") in rows
    assert rows["rmsnorm", "gain"].layers in (1, 3)


def test_what_is_new_is_listed_and_stays_refused_by_the_draft(tiny_checkpoint, tmp_path):
    path = changed(
        tiny_checkpoint("llama"),
        tmp_path / "m",
        model_type="other",
        architectures=["OtherForCausalLM"],
        residual_magic=0.25,
        rms_norm_eps=None,
        hidden_act="mish",
    )
    report = examine(path)
    found = fit(report, "llama")
    assert found.unknown_keys == {"residual_magic": 0.25}
    assert [text.partition(": ")[2] for text in found.refused] == [
        "hidden_act: found 'mish', supported: silu, swish, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu, relu2",
        "rms_norm_eps: missing, and it has no default",
    ]
    assert "residual_magic = 0.25" in report.draft
    draft = tmp_path / "other.py"
    draft.write_text(report.draft)
    with pytest.raises(UnsupportedModel, match="mish"):
        LLM(path, family_file=str(draft))


def test_tensors_without_a_place_and_missing_ones(tiny_checkpoint, tmp_path):
    """The layers of a model with biases, called one without: the biases are left over, with the op they hint at."""
    path = changed(tiny_checkpoint("llama-bias"), tmp_path / "m", attention_bias=False)
    report = examine(path)
    assert "has no place" in report.reason
    left_over = fit(report, "llama").left_over
    assert left_over["model.layers.{layer}.self_attn.q_proj.bias"] == "multihead_attention"
    path = changed(tiny_checkpoint("llama"), tmp_path / "n", model_type="other", attention_bias=True)
    missing = fit(examine(path), "llama").missing
    assert any("model.layers.{layer}.self_attn.q_proj.bias" in text and "missing" in text for text in missing)
    assert len(missing) == 4


def test_an_unknown_gguf_architecture(tmp_path, monkeypatch):
    from gguf import GGUFWriter

    monkeypatch.setattr(tiny.gguf, "GGUFWriter", lambda path, _: GGUFWriter(path, "newarch"))
    writer_path = tmp_path / "a.gguf"
    tiny.export_gguf("llama", writer_path)
    report = examine(writer_path)
    assert report.model_type == "newarch"
    assert report.reason == "'newarch' is no known family"
    assert (report.fits[0].family, report.fits[0].tensors_placed) == ("llama", report.tensors)
    assert 'GGUF_ARCHITECTURE: ClassVar[str | None] = "newarch"' in report.draft


def test_a_config_alone_is_read_without_tensors(tiny_checkpoint, tmp_path):
    path = tmp_path / "config.json"
    config = json.loads((tiny_checkpoint("llama") / "config.json").read_text())
    path.write_text(json.dumps({**config, "model_type": "other"}))
    report = examine(path)
    assert (report.tensors, fit(report, "llama").readable) == (0, True)


def test_what_cannot_be_examined(tmp_path):
    with pytest.raises(ModelNotFound):
        examine(tmp_path)
    path = tmp_path / "config.json"
    for text, error in (
        ("{", InvalidFile),
        ("[]", InvalidFile),
        ("{}", UnsupportedModel),
        ('{"model_type": 3}', UnsupportedModel),
    ):
        path.write_text(text)
        with pytest.raises(error):
            examine(path)
    path.write_text('{"model_type": "x", "hidden_size": "wide"}')
    report = examine(path)
    assert not any(fit.readable for fit in report.fits) and report.draft is None


def test_the_command(tiny_checkpoint, tmp_path, capsys):
    path = changed(tiny_checkpoint("llama"), tmp_path / "m", model_type="other", magic=1)
    out = tmp_path / "other.py"
    assert main(["onboard", str(path), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "not supported: 'other' is no known family" in text and "magic = 1" in text and str(out) in text
    assert out.read_text() == examine(path).draft
    assert main(["onboard", str(path), "--out", str(out)]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["onboard", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"][0]["family"] == "llama"
    assert main(["onboard", str(tiny_checkpoint("llama"))]) == 0
    assert "supported: it runs as it is" in capsys.readouterr().out


def test_keys_that_a_family_need_not_read_are_no_news(tiny_checkpoint, tmp_path):
    """Those of all families, and those that may stand with one value only."""
    path = changed(tiny_checkpoint("llama"), tmp_path / "m", model_type="other", is_decoder=False, use_cache=True)
    assert fit(examine(path), "llama").unknown_keys == {}
    path = changed(tiny_checkpoint("llama"), tmp_path / "n", model_type="other", hidden_act="gelu_pytorch_tanh")
    assert "hidden_act" not in fit(examine(path), "gemma2").unknown_keys


def test_keys_of_gguf_are_judged_as_its_own(tmp_path):
    from gguf import GGUFWriter

    path = tmp_path / "a.gguf"
    writer = GGUFWriter(path, "newarch")
    for key in ("vocab_size", "embedding_length", "feed_forward_length", "block_count", "context_length"):
        writer.add_uint32(f"newarch.{key}", 8)
    writer.add_uint32("newarch.attention.head_count", 2)
    writer.add_float32("newarch.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("newarch.tensor_data_layout", "reference")
    writer.add_uint32("newarch.num_labels", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert fit(examine(path), "llama").unknown_keys == {"num_labels": 3}
