"""The first instruction that diverges is named, whatever was broken, on both backends."""

import msgspec
import numpy as np
import pytest
import torch
from tests.cli.command import treadle_json

from treadle.inference.inspection import InstructionInfo, instructions
from treadle.inference.llm import LLM
from treadle.models.checkpoint import Checkpoint
from treadle.parity import oracle, run, trace
from treadle.parity.matrix import read_matrix
from treadle.plan.ir import Opcode
from treadle.plan.params import ResidualAddParams

MATRIX = read_matrix()
TOLERANCE = 1e-4
BACKENDS = ["reference", "cpu"]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    (case,) = MATRIX.select("llama", "gqa")
    made = run.matrix_subject(case, MATRIX.defaults, tmp_path_factory.mktemp("trace"))
    made.checkpoint(run.SETTINGS[0])  # written now, whichever test comes first: some break the model's weights
    return made


def options(backend):
    return {**run.engine_options(run.Setting(backend, "exact", "f32"), 1), "threads": 1}


def traced(subject, backend):
    ids = subject.prompts[1]
    path = subject.checkpoint(run.SETTINGS[0])
    return trace.against_oracle(trace.inspect(path, options(backend), ids), oracle, subject.model, ids, TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_instruction_of_llama_has_a_point_and_agrees(subject, backend):
    found = traced(subject, backend)
    assert found.first is None
    assert [point.index for point in found.points] == list(range(3 * 6 + 3))
    assert found.points[2].at == "model.layers.0.self_attn output"
    assert found.points[3].at == "model.layers.0.post_attention_layernorm input"
    assert all(point.rel_err < TOLERANCE for point in found.points)
    assert max(point.rel_err for point in found.points) > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "index", "op"),
    [
        ("model.embed_tokens.weight", 0, "embedding"),
        ("model.layers.1.self_attn.o_proj.weight", 8, "multihead_attention"),
        ("model.layers.1.post_attention_layernorm.weight", 10, "rmsnorm"),
        ("model.layers.2.mlp.up_proj.weight", 17, "swiglu"),
        ("model.norm.weight", 19, "rmsnorm"),
        ("lm_head.weight", 20, "lm_head"),
    ],
)
def test_a_broken_weight_is_named(subject, backend, name, index, op):
    with torch.no_grad():
        weight = subject.model.get_parameter(name)
        kept = weight.clone()
        weight.mul_(1.1)
        found = traced(subject, backend)
        weight.copy_(kept)
    assert (found.first.index, found.first.op) == (index, op)
    assert name in found.first.tensors
    assert f"instruction {index}, {op}" in str(found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_broken_plan_is_named(subject, backend, monkeypatch):
    """A residual of layer 1 that adds 1.01 of its value: an instruction without weights."""
    compile_model = Checkpoint.compile

    def broken(self, options):
        plans = compile_model(self, options)
        return msgspec.structs.replace(plans, prefill=changed(plans.prefill), decode=changed(plans.decode))

    def changed(compiled):
        wrong = len(compiled.param_blocks)
        ops = list(compiled.plan.instructions)
        assert ops[9].opcode == Opcode.RESIDUAL_ADD
        ops[9] = msgspec.structs.replace(ops[9], param_block_id=wrong)
        blocks = (*compiled.param_blocks, ResidualAddParams(1.01).pack())
        plan = msgspec.structs.replace(compiled.plan, instructions=tuple(ops))
        return msgspec.structs.replace(compiled, plan=plan, param_blocks=blocks)

    monkeypatch.setattr(Checkpoint, "compile", broken)
    found = traced(subject, backend)
    assert (found.first.index, found.first.op) == (9, "residual_add")
    assert "residual_add behind 8" in str(found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inspection_changes_no_bit(subject, backend):
    """Unfused and with every register kept, in one step and in many."""
    path, ids = subject.checkpoint(run.SETTINGS[0]), subject.prompts[1]
    with LLM(path, **options(backend)) as llm:
        logits = llm.logits(ids)
    values = [trace.inspect(path, options(backend), ids, chunk).values for chunk in (None, 7, 1)]
    np.testing.assert_array_equal(values[0][20], logits)
    if backend == "cpu":
        for other in values[1:]:
            for i, value in values[0].items():
                np.testing.assert_array_equal(other[i], value)
    assert [values[0][i].shape[0] for i in range(21)] == [len(ids)] * 21


def test_plans_of_more_instructions_than_outputs_are_inspected_in_pieces(subject, monkeypatch):
    path, ids = subject.checkpoint(run.SETTINGS[0]), subject.prompts[3]
    whole = trace.inspect(path, options("cpu"), ids)
    monkeypatch.setattr("treadle.inference.inspection.PIECE", 8)
    monkeypatch.setattr(trace, "PIECE", 8)
    pieces = trace.inspect(path, options("cpu"), ids)
    assert pieces.values.keys() == whole.values.keys()
    for i, value in whole.values.items():
        np.testing.assert_array_equal(pieces.values[i], value)


def test_ways_of_feeding_that_part_are_located():
    infos = (info(0, -1), info(1, 0), info(2, 1))
    values = {i: np.full((2, 2), float(i), np.float32) for i in range(3)}
    other = {**values, 1: values[1] + np.float32(1e-7), 2: values[2] + 1}
    found = trace.between_ways(trace.Inspected(infos, values), trace.Inspected(infos, other))
    assert found.first == infos[1]
    assert trace.between_ways(trace.Inspected(infos, values), trace.Inspected(infos, values)).first is None


def info(index, *reads, tensors=()):
    return InstructionInfo(index, "rmsnorm", tensors, reads)


def errors(*values):
    return [trace.TracePoint(i, "rmsnorm", (), "", value) for i, value in enumerate(values) if value is not None]


def test_a_point_that_differs_before_agreeing_ones_does_not_count():
    """1 differs, but 2 follows from it and agrees: its module is not what the instruction computes."""
    chain = (info(0, -1), info(1, 0), info(2, 1), info(3, 2), info(4, 3))
    assert trace.first_divergence(chain, errors(0, 1, 0, 1, 1), 0.1).first == chain[3]
    # 2 and 3 both read 1; 3 does not follow from 2
    fork = (info(0, -1), info(1, 0), info(2, 1), info(3, 1), info(4, 2, 3))
    assert trace.first_divergence(fork, errors(0, 0, 1, 0, 1), 0.1).first == fork[2]
    assert trace.first_divergence(fork, errors(0, 0, 1, 0, 0), 0.1).first is None


def test_modules_by_what_tensor_names_share():
    modules = frozenset({"", "model.layers.0.mlp", "model.layers.0.mlp.up_proj", "model.norm"})
    both = ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight")
    assert trace.module_of(info(0, tensors=both), modules) == "model.layers.0.mlp"
    assert trace.module_of(info(0, tensors=both[:1]), modules) == "model.layers.0.mlp.up_proj"
    assert trace.module_of(info(0, tensors=("other.norm.weight",)), modules) is None
    assert trace.module_of(info(0), modules) is None


def test_instructions_say_what_they_read(subject):
    with LLM(subject.checkpoint(run.SETTINGS[0]), **options("cpu")) as llm:
        infos = instructions(llm.plans)
    assert infos[0].reads == (-1,)
    assert infos[3].reads == (0, 2)
    assert infos[1].tensors == ("model.layers.0.input_layernorm.weight",)


def test_command():
    found = treadle_json("parity", "--family", "llama", "--case", "gqa", "--backend", "reference", "--trace")
    (case,) = found["cases"]
    assert case["diverges"] == ""
    assert [point["index"] for point in case["trace"]] == list(range(21))
