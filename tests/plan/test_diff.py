"""What `treadle plan diff` says of plans that differ in one known way."""

import json
import subprocess

import pytest
from tests.cli.command import TREADLE

from treadle.models.compile import CompileOptions, compile_model
from treadle.models.config import Keys
from treadle.models.registry import family_of_json
from treadle.plan.codec import save
from treadle.plan.diff import Difference, Kind, differences
from treadle.plan.dump import as_dict
from treadle.plan.ir import DType

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}


def plans(options=None, **changes):
    family = family_of_json("llama", "config.json")
    config = family.config.read(Keys.of_json({**CONFIG, **changes}, "config.json"))
    return compile_model(family.architecture(config), config.sha256(), options or CompileOptions())


def found(a, b):
    return {(d.kind, d.stage, d.where, d.what) for d in differences(as_dict(a), as_dict(b))}


def test_equal_plans_have_no_difference():
    assert differences(as_dict(plans()), as_dict(plans())) == []


def test_a_parameter_of_every_layer_is_said_once():
    said = found(plans(), plans(num_key_value_heads=4))
    assert ("changed", "prefill, decode", "layers 0-5", "multihead_attention: num_kv_heads 2 -> 4") in said
    assert (
        "changed",
        "prefill, decode",
        "layers 0-5",
        "multihead_attention: weight k shape [16, 32] -> [32, 32]",
    ) in said
    assert ("changed", "prefill, decode", "layers 0-5", "multihead_attention: state size_bytes 8192 -> 16384") in said


def test_layers_that_are_new_or_gone():
    said = found(plans(), plans(num_hidden_layers=8))
    assert ("changed", "", "model", "layers 6 -> 8") in said
    assert ("added", "prefill, decode", "layers 6-7", "multihead_attention") in said
    assert ("changed", "prefill, decode", "stage", "states 6 -> 8") in said
    assert ("removed", "prefill, decode", "layers 6-7", "swiglu") in found(plans(num_hidden_layers=8), plans())


def test_weights_that_are_new():
    what = "multihead_attention: weight q_bias = layers.{layer}.attention.q_bias [32]"
    assert ("added", "prefill, decode", "layers 0-5", what) in found(plans(), plans(attention_bias=True))


def test_a_tied_head_changes_its_weight():
    said = [
        what for _, _, where, what in found(plans(), plans(tie_word_embeddings=True)) if where == "after the layers"
    ]
    assert "lm_head: weight weight name lm_head.weight -> embedding.table" in said


def test_the_way_that_keys_are_kept():
    said = found(plans(), plans(CompileOptions(kv_dtype=DType.F16)))
    assert ("changed", "prefill, decode", "layers 0-5", "multihead_attention: kv_dtype f32 -> f16") in said
    assert not any(stage == "" for _, stage, _, _ in said)


def test_one_layer_that_is_unlike_the_others_is_named():
    a, b = as_dict(plans()), as_dict(plans())
    b["hash"] = "other"
    for stage in b["stages"]:
        stage["instructions"][2 + 6 * 3]["params"]["window"] = 16
        stage["instructions"][2 + 6 * 5]["params"]["window"] = 16
    window = "multihead_attention: window 0 -> 16"
    assert differences(a, b) == [Difference(Kind.CHANGED, "prefill, decode", "layers 3, 5", window)]
    b["stages"][1] = as_dict(plans())["stages"][1]
    assert differences(a, b) == [Difference(Kind.CHANGED, "prefill", "layers 3, 5", window)]


def test_an_op_within_a_layer_is_new():
    a, b = as_dict(plans()), as_dict(plans())
    b["hash"] = "other"
    for stage in b["stages"]:
        del stage["instructions"][2 + 6 * 3]
    said = [(d.kind, d.where, d.what) for d in differences(a, b)]
    assert (Kind.REMOVED, "layer 3", "multihead_attention") in said


def test_a_stage_that_is_gone():
    whole, half = as_dict(plans()), as_dict(plans())
    half["hash"] = "other"
    del half["stages"][1]
    assert differences(whole, half) == [Difference(Kind.REMOVED, "decode", "stage", "39 instructions")]
    assert differences(half, whole) == [Difference(Kind.ADDED, "decode", "stage", "39 instructions")]


@pytest.fixture
def plan_files(tmp_path):
    save(plans(), tmp_path / "a.plan")
    save(plans(num_key_value_heads=4), tmp_path / "b.plan")
    return tmp_path


def run(*arguments, **options):
    return subprocess.run([TREADLE, "plan", "diff", *arguments], capture_output=True, text=True, check=False, **options)


def test_the_command_answers_as_diff_does(plan_files):
    a, b = plan_files / "a.plan", plan_files / "b.plan"
    same, other, wrong = run(a, a), run(a, b), run(a, plan_files / "none.plan")
    assert (same.returncode, same.stdout) == (0, "the plans are the same\n")
    assert other.returncode == 1 and "  ~ layers 0-5: multihead_attention: num_kv_heads 2 -> 4\n" in other.stdout
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    told = json.loads(run(a, b, "--json").stdout)
    assert not told["same"] and {"kind", "stage", "where", "what"} == set(told["differences"][0])


def test_a_damaged_plan_file_is_an_error(plan_files):
    (plan_files / "c.plan").write_bytes((plan_files / "a.plan").read_bytes()[:-1])
    result = run(plan_files / "a.plan", plan_files / "c.plan")
    assert result.returncode == 2 and "c.plan" in result.stderr


FAKE_CLI = """\
import json, sys
from pathlib import Path
assert Path(__file__).parts[-4] == "src", __file__
def main(arguments):
    assert arguments[0] == "plan" and "--json" in arguments
    print(Path(__file__).parents[3].joinpath("plan.json").read_text())
    return 0
"""


def test_two_commits_compile_with_their_own_sources(tmp_path):
    """A repository whose treadle prints a file: what is compared is what each commit's own sources said."""

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    cli = tmp_path / "src" / "treadle" / "cli"
    cli.mkdir(parents=True)
    (cli.parent / "__init__.py").touch()
    (cli / "__init__.py").touch()
    (cli / "main.py").write_text(FAKE_CLI)
    for heads in (2, 4):
        (tmp_path / "plan.json").write_text(json.dumps(as_dict(plans(num_key_value_heads=heads))))
        git("add", "-A")
        git("commit", "-qm", str(heads))
    result = run("HEAD~1", "HEAD", "--model", "any", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "num_kv_heads 2 -> 4" in result.stdout
    assert run("HEAD", "HEAD", "--model", "any", cwd=tmp_path).returncode == 0
    missing = run("HEAD", "no-such-commit", "--model", "any", cwd=tmp_path)
    assert missing.returncode == 2 and "no-such-commit" in missing.stderr
    listed = subprocess.run(["git", "worktree", "list"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert listed.stdout.count("\n") == 1
