"""Text and JSON forms of plans; folding loses nothing."""

from __future__ import annotations

import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.plan.builder import decoder, model
from tests.plan.edits import edit, replace
from tests.plan.random_plans import model_plans
from tests.plan.zoo import zoo

from treadle.plan.codec import plan_hash
from treadle.plan.dump import as_dict, text
from treadle.plan.fold import fold
from treadle.plan.ir import Stage


def unfolded(lines: list[str]) -> list[str]:
    """The lines that `fold` was given."""
    out, i = [], 0
    while i < len(lines):
        head = re.fullmatch(r"i = 0\.\.(\d+):", lines[i])
        i += 1
        if head is None:
            out.append(lines[i - 1])
            continue
        block = []
        while i < len(lines) and lines[i].startswith("| "):
            block.append(lines[i][2:])
            i += 1
        for k in range(int(head[1]) + 1):
            out += [
                re.sub(r"\{(\d*)i(?:\+(\d+))?\}", lambda m, k=k: str(int(m[1] or 1) * k + int(m[2] or 0)), line)
                for line in block
            ]
    return out


word = st.sampled_from(["r", "x = f(", ").", "-", " ", "e-0", "layers."])
line = st.lists(st.tuples(word, st.integers(0, 12)), max_size=3).map(lambda parts: "".join(f"{w}{n}" for w, n in parts))


@st.composite
def repetitive_lines(draw):
    """Lines with blocks that repeat with shifted numbers, so that folding has something to find."""
    lines = draw(st.lists(line, max_size=3))
    for _ in range(draw(st.integers(0, 3))):
        block = draw(st.lists(st.tuples(word, st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=3))
        for k in range(draw(st.integers(1, 5))):
            lines += [f"{w}{start + k * step}" for w, start, step in block]
    return lines


@settings(max_examples=500, deadline=None)
@given(repetitive_lines(), st.integers(1, 3))
def test_folding_loses_nothing(lines, shortest):
    folded = fold(lines, shortest)
    assert unfolded(folded) == lines
    assert len(folded) <= len(lines) + len(lines) // 2


def test_a_run_is_folded_once():
    assert fold([f"r{i + 1} = f(r{i})" for i in range(5)]) == ["i = 0..4:", "| r{i+1} = f(r{i})"]
    assert fold(["w0 a", "w1 b", "w2 a", "w3 b", "end"]) == ["i = 0..1:", "| w{2i} a", "| w{2i+1} b", "end"]
    assert fold(["eps 1e-05", "eps 1e-06"]) == ["eps 1e-05", "eps 1e-06"]
    assert fold(["r3", "r2", "r1"]) == ["r3", "r2", "r1"]


def test_text_of_a_deep_decoder_is_short_and_whole():
    shallow, deep = (model(prefill=decoder(Stage.PREFILL, n), decode=decoder(layers=n)) for n in (2, 40))
    assert len(text(deep).splitlines()) == len(text(shallow).splitlines())
    lines = text(deep).splitlines()
    start, end = lines.index("instructions"), lines.index("registers")
    whole = unfolded(lines[start + 1 : end])
    heads = [line for line in whole if line.startswith("#")]
    assert len(heads) == len(deep.prefill.plan.instructions)
    assert heads[1] == "#1 r2 = rmsnorm(x=r1)"
    assert heads[-1] == "#242 r243 = lm_head(x=r242); last of r242"
    assert "stage decode: the program of prefill" in lines


def test_stages_that_differ_are_shown_apart():
    plans = model(prefill=decoder(Stage.PREFILL), decode=replace(decoder(), diagnostics=("checked by hand",)))
    shown = text(plans)
    assert "the program of" not in shown
    assert shown.endswith("diagnostics\nchecked by hand\n")


def test_text_shows_every_difference():
    plans = model(prefill=decoder(Stage.PREFILL), decode=decoder())
    for path, value in (
        (["facts", "layers"], 3),
        (["config_hash"], "1" * 64),
        (["compiler_version"], "0.2.0"),
        (["prefill", "weight_bindings", 3, "name"], "other"),
        (["prefill", "weight_bindings", 3, "dtypes"], lambda d: d[:1]),
        (["prefill", "weight_bindings", 3, "sources", 0, "tensors"], ("other",)),
    ):
        before, after = (text(p).splitlines() for p in (plans, edit(plans, path, value)))
        assert before[1].startswith("plan ")
        assert [*before[:1], *before[2:]] != [*after[:1], *after[2:]], path


@settings(max_examples=40, deadline=None)
@given(model_plans())
def test_every_plan_can_be_shown(plans):
    assert plan_hash(plans) in text(plans)
    assert text(plans) == text(plans)
    shown = json.loads(json.dumps(as_dict(plans), allow_nan=False))
    assert shown["hash"] == plan_hash(plans)
    for stage, compiled in zip(shown["stages"], plans.stages(), strict=True):
        assert len(stage["instructions"]) == len(compiled.plan.instructions)
        assert [w["name"] for w in stage["weights"]] == [w.name for w in compiled.weight_bindings]


def test_the_dictionary_speaks_in_names():
    shown = as_dict(zoo())
    attention = next(i for i in shown["stages"][2]["instructions"] if i["opcode"] == "multihead_attention")
    assert attention["params"]["rope_style"] == "interleaved"
    assert attention["params"]["qk_norm"] == "rms_per_head"
    assert attention["weights"]["q"].endswith(".q")
    assert shown["stages"][0]["registers"][0]["shape"][0] == "rows"
    assert shown["handoffs"][0]["lifetime"] == "request_scoped"
    mamba = next(i for i in shown["stages"][2]["instructions"] if i["opcode"] == "mamba_mixer")
    assert mamba["params"]["dt_max"] == "inf"
