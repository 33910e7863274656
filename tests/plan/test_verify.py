"""Each rule of the verifier against a plan that breaks it, and it alone."""

from __future__ import annotations

import pytest
from tests.plan.builder import Builder, decoder, model, relive
from tests.plan.edits import (
    binding,
    edit,
    find,
    instruction,
    params,
    replace,
    slot,
    with_binding,
    without_register,
)
from tests.plan.refusals import broken
from tests.plan.zoo import encoder, joined, mixers, scatter, zoo

from treadle.errors import InvalidPlan, InvalidRegisterSpec, InvalidStateDescriptorBinding
from treadle.plan.ir import (
    NO_REGISTER,
    NO_WEIGHT,
    Container,
    DType,
    Generator,
    GeneratorKind,
    Lifecycle,
    Opcode,
    Source,
    Stage,
    StateDescriptor,
    Symbol,
    Transform,
    TransformKind,
)
from treadle.plan.params import Activation, AttentionParams, GroupScore, MambaNorm, RMSNormParams
from treadle.plan.verify import MODEL_RULES, RULES, verify

ADD, ATTENTION, MLP, EMBED, HEAD, NORM = (
    Opcode.RESIDUAL_ADD,
    Opcode.MULTIHEAD_ATTENTION,
    Opcode.SWIGLU,
    Opcode.EMBEDDING,
    Opcode.LM_HEAD,
    Opcode.RMSNORM,
)
MOE, MAMBA, MLA, DELTA, POOL = (
    Opcode.MOE,
    Opcode.MAMBA_MIXER,
    Opcode.MLA_ATTENTION,
    Opcode.GATED_DELTA_NET,
    Opcode.POOL,
)
SPARE = StateDescriptor(9, 8192, 64, False, Lifecycle.SLOT_PERSISTENT, 64)


def state(compiled, nth=0, **fields):
    return edit(compiled, ["plan", "state_descs", nth], lambda s: replace(s, **fields))


def block(compiled, opcode, **fields):
    block_id = compiled.plan.instructions[find(compiled, opcode)].param_block_id
    return edit(compiled, ["param_blocks", block_id], lambda b: replace(b, **fields))


def last(compiled, field, value):
    return edit(compiled, ["register_specs", len(compiled.register_specs) - 1, field], value)


def norms(count: int, width: int = 8):
    b = Builder(Stage.DECODE)
    x = b.input(DType.F32, Symbol.ROWS, width)
    for _ in range(count):
        x = b.op(RMSNormParams(1e-5), [x])
    return b.finish(x)


def dead_end(d):
    """One more norm, whose result nobody reads."""
    norm = replace(d.plan.instructions[1], outputs=(d.plan.register_count,))
    plan = replace(d.plan, instructions=(*d.plan.instructions, norm), register_count=d.plan.register_count + 1)
    return relive(replace(d, plan=plan, register_specs=(*d.register_specs, d.register_specs[1])))


def encoder_attention():
    b = Builder(Stage.ENCODE)
    x = b.input(DType.F32, Symbol.ROWS, 32)
    return b.finish(b.op(AttentionParams(4, 4, 8, 8, 0.35, causal=0), [x]))


def shares_state(d):
    d = instruction(d, ATTENTION, ["state_block_id"], 0, nth=1)
    return edit(d, ["plan", "state_descs"], lambda states: states[:1])


def stateless(d):
    d = instruction(d, ATTENTION, ["state_block_id"], None)
    return edit(d, ["plan", "state_descs"], lambda states: states[1:])


def spare_state(d):
    return edit(d, ["plan", "state_descs"], lambda states: (*states, SPARE))


def pool_without_dense(head):
    """A pooled head on the rows themselves, or none at all."""
    e = encoder()
    for name in ("dense", "dense_bias", "norm", "norm_bias"):
        e = slot(e, POOL, name, NO_WEIGHT)
    if head is not None:
        return binding(e, ".head", shape=head)
    return slot(slot(e, POOL, "head", NO_WEIGHT), POOL, "head_bias", NO_WEIGHT)


def sources(*containers, tensors=("t",), transforms=()):
    return tuple(Source(container, tensors, transforms) for container in containers)


def transform(kind, *args, tensors=("t",), more=()):
    given = (Transform(TransformKind[kind], args), *more)
    return lambda: binding(decoder(), ".up", sources=sources(Container.GGUF, tensors=tensors, transforms=given))


def generator(kind, *args, **fields):
    made = Generator(GeneratorKind[kind], args)
    return lambda: binding(decoder(), "rope_inv_freq", generator=made, **fields)


STAGE_CASES = {
    "plan-size: too many instructions": lambda: norms(8193),
    "diagnostics: one is long": lambda: replace(decoder(), diagnostics=("x" * 1025,)),
    "diagnostics: many": lambda: replace(decoder(), diagnostics=("x",) * 257),
    "opcode-known: a backend's own": lambda: instruction(decoder(), HEAD, ["opcode"], 200),
    "opcode-stage: image rows in a decode step": lambda: replace(scatter(), stage=Stage.DECODE),
    "arity: three addends": lambda: instruction(decoder(), ADD, ["inputs"], lambda r: (*r, r[0])),
    "arity: no type ids": lambda: instruction(decoder(), EMBED, ["inputs"], (0,)),
    "arity: two results": lambda: instruction(decoder(), HEAD, ["outputs"], lambda r: (*r, NO_REGISTER)),
    "optional-registers: an addend": lambda: instruction(decoder(), ADD, ["inputs", 0], NO_REGISTER),
    "register-range: read": lambda: instruction(decoder(), ADD, ["inputs", 0], 500),
    "register-range: negative": lambda: instruction(decoder(), ADD, ["inputs", 0], -1),
    "register-range: plan output": lambda: relive(edit(decoder(), ["plan", "outputs"], lambda r: (*r, 500))),
    "plan-ports: an output twice": lambda: edit(decoder(), ["plan", "outputs"], lambda r: (*r, *r)),
    "single-assignment: a register reused": lambda: without_register(decoder(), 14, 2),
    "written-before-read: its own result": lambda: instruction(decoder(), ADD, ["inputs", 0], 4),
    "written-before-read: an input as output": lambda: relive(edit(decoder(), ["plan", "outputs"], lambda r: (*r, 0))),
    "registers-used: a result for nobody": lambda: dead_end(decoder()),
    "spec-count: one short": lambda: replace(decoder(), register_specs=decoder().register_specs[:-1]),
    "register-rank: five axes": lambda: last(decoder(), "shape", (Symbol.SAMPLED, 96, 1, 1, 1)),
    "register-rank: none": lambda: last(decoder(), "shape", ()),
    "register-sizes: no such symbol": lambda: last(decoder(), "shape", (-9, 96)),
    "register-sizes: zero": lambda: last(decoder(), "shape", (Symbol.SAMPLED, 0)),
    "register-sizes: 2^49": lambda: norms(2, 1 << 49),
    "register-storage: quantised": lambda: last(decoder(), "dtype", DType.Q8_0),
    "port-dtypes: float ids": lambda: edit(decoder(), ["register_specs", 0, "dtype"], DType.F32),
    "port-shapes: another symbol": lambda: last(decoder(), "shape", (Symbol.ROWS, 96)),
    "port-shapes: a symbol for a width": lambda: last(decoder(), "shape", (Symbol.SAMPLED, Symbol.ROWS)),
    "port-shapes: a constant for a symbol": lambda: last(decoder(), "shape", (1, 96)),
    "port-shapes: not the vocabulary": lambda: last(decoder(), "shape", (Symbol.SAMPLED, 95)),
    "port-shapes: one axis": lambda: last(decoder(), "shape", (Symbol.SAMPLED,)),
    "causal-stage: a step that sees the future": lambda: replace(encoder_attention(), stage=Stage.DECODE),
    "liveness: a later read": lambda: edit(decoder(), ["liveness", "register_last_read", 3], 9),
    "liveness: killed twice": lambda: edit(decoder(), ["liveness", "kill_after_instruction", 9], b"\x02\x00"),
    "liveness: a kill set short": lambda: edit(decoder(), ["liveness", "kill_after_instruction", 9], b""),
    "liveness: a set too many": lambda: edit(decoder(), ["liveness", "kill_after_instruction"], lambda k: (*k, b"")),
    "peak-registers: one more": lambda: replace(decoder(), peak_registers=4),
    "param-block: none": lambda: instruction(decoder(), ADD, ["param_block_id"], None),
    "param-block: out of range": lambda: instruction(decoder(), ADD, ["param_block_id"], 99),
    "param-block: another op's": lambda: instruction(decoder(), ADD, ["param_block_id"], 0),
    "param-abi: a later version": lambda: block(decoder(), ATTENTION, abi_version=2),
    "param-abi: version 0": lambda: block(decoder(), ATTENTION, abi_version=0),
    "param-abi: short": lambda: block(decoder(), ATTENTION, payload=b"\0" * 64),
    "param-abi: long": lambda: block(decoder(), ATTENTION, payload=b"\0" * 257),
    "param-abi: padding": lambda: block(decoder(), HEAD, payload=b"\x60" + b"\0" * 14 + b"\x01"),
    "params-used: a spare block": lambda: replace(
        decoder(), param_blocks=(*decoder().param_blocks, RMSNormParams(0.5).pack())
    ),
    "state-ids: beyond 16 bits": lambda: instruction(state(decoder(), id=65536), ATTENTION, ["state_block_id"], 65536),
    "state-binding: none": lambda: stateless(decoder()),
    "state-binding: a sum with state": lambda: instruction(spare_state(decoder()), ADD, ["state_block_id"], 9),
    "state-binding: an encoder with state": lambda: instruction(
        spare_state(encoder_attention()), ATTENTION, ["state_block_id"], 9
    ),
    "state-users: nobody": lambda: spare_state(decoder()),
    "state-users: two": lambda: shares_state(decoder()),
    "state-pages: paged as fixed": lambda: state(decoder(), page_tokens=0),
    "state-pages: fixed as paged": lambda: state(mixers(Stage.DECODE), 5, page_tokens=64),
    "state-pages: too many tokens": lambda: state(decoder(), page_tokens=65537),
    "state-page-tokens: two sizes": lambda: state(decoder(), page_tokens=32, size_bytes=4096),
    "state-size: one byte more": lambda: state(decoder(), size_bytes=8193),
    "state-size: fixed": lambda: state(mixers(Stage.DECODE), 5, size_bytes=4),
    "state-align: no power of two": lambda: state(decoder(), align_bytes=48),
    "state-align: zero": lambda: state(decoder(), align_bytes=0),
    "state-align: huge": lambda: state(decoder(), align_bytes=1 << 40),
    "state-lifecycle: gone after a step": lambda: state(decoder(), lifecycle=Lifecycle.STEP_SCOPED),
    "weight-count: one short": lambda: instruction(decoder(), ATTENTION, ["weights"], lambda w: w[:-1]),
    "weight-count: one more": lambda: instruction(decoder(), NORM, ["weights"], lambda w: (*w, NO_WEIGHT)),
    "weight-optional: the up matrix": lambda: slot(decoder(), MLP, "up", NO_WEIGHT),
    "weight-range: too high": lambda: slot(decoder(), NORM, "gain", 9999),
    "weight-range: negative": lambda: slot(decoder(), NORM, "gain", -1),
    "weights-used: a spare": lambda: with_binding(decoder()),
    "binding-index: swapped": lambda: binding(decoder(), ".up", index=0),
    "binding-name: twice": lambda: binding(decoder(), "5.up", name="5.down"),
    "binding-name: empty": lambda: binding(decoder(), ".up", name=""),
    "binding-name: long": lambda: binding(decoder(), ".up", name="x" * 513),
    "binding-name: a control character": lambda: binding(decoder(), ".up", name="x\x1b[2J"),
    "weight-rank: five axes": lambda: binding(decoder(), ".up", shape=(64, 32, 1, 1, 1)),
    "weight-rank: none": lambda: binding(decoder(), ".up", shape=()),
    "weight-sizes: zero": lambda: binding(decoder(), ".up", shape=(0, 32)),
    "weight-sizes: a symbol": lambda: binding(decoder(), ".up", shape=(64, Symbol.ROWS)),
    "weight-sizes: overflow": lambda: binding(decoder(), ".up", shape=(1 << 40, 1 << 40)),
    "weight-dtypes: none": lambda: binding(decoder(), ".up", dtypes=()),
    "weight-dtypes: twice": lambda: binding(decoder(), ".up", dtypes=(DType.F32, DType.F32)),
    "weight-dtypes: generated in f16": lambda: binding(decoder(), "rope_inv_freq", dtypes=(DType.F16,)),
    "weight-sources: from nowhere": lambda: binding(decoder(), ".up", sources=()),
    "weight-sources: read and generated": lambda: binding(decoder(), "inv_freq", sources=sources(Container.GGUF)),
    "weight-sources: a generator without its tensor": generator("ROPE_FACTORS", 8.0, 1e4),
    "weight-sources: one container twice": lambda: binding(
        decoder(), ".up", sources=sources(Container.GGUF, Container.GGUF)
    ),
    "weight-sources: no tensor": lambda: binding(decoder(), ".up", sources=sources(Container.GGUF, tensors=())),
    "weight-sources: an empty name": lambda: binding(decoder(), ".up", sources=sources(Container.GGUF, tensors=("",))),
    "transforms: too few arguments": transform("SLICE_ROWS", 1),
    "transforms: too many": transform("TRANSPOSE", 1),
    "transforms: beyond 64 bits": transform("ADD_CONSTANT", 1 << 63),
    "transforms: negative": transform("SLICE_ROWS", -1, 4),
    "transforms: an empty slice": transform("SLICE_HEAD_ROWS", 4, 8, 8),
    "transforms: no heads": transform("ROPE_ROWS_FROM_INTERLEAVED", 0),
    "transforms: step 0": transform("STRIDE_ROWS", 0, 0),
    "transforms: an empty part": transform("REGROUP_HEAD_ROWS", 2, 8, 0),
    "transforms: a shape with 0": transform("RESHAPE", 4, 0),
    "transforms: two tensors left apart": transform("TRANSPOSE", tensors=("a", "b")),
    "transforms: joined twice": transform("STACK", tensors=("a", "b"), more=(Transform(TransformKind.CONCAT_ROWS),)),
    "transforms: seventeen": transform("TRANSPOSE", more=(Transform(TransformKind.TRANSPOSE),) * 16),
    "generators: too few arguments": generator("ROPE_LLAMA3", 8.0, 1e4, 8.0),
    "generators: not a number": generator("ROPE_DEFAULT", 8.0, float("nan")),
    "generators: infinite": generator("ROPE_LINEAR", 8.0, 1e4, float("inf")),
    "generators: theta 0": generator("ROPE_DEFAULT", 8.0, 0.0),
    "generators: another size": generator("ROPE_DEFAULT", 6.0, 1e4),
    "generators: an odd size": generator("ROPE_DEFAULT", 7.0, 1e4),
    "generators: factors missing": generator("ROPE_FACTOR_LIST", 8.0, 1e4, 1.0, 1.0),
    "weight-shapes: transposed": lambda: binding(decoder(), ".up", shape=(32, 64)),
    "weight-shapes: flat": lambda: binding(decoder(), ".up", shape=(64 * 32,)),
    "weight-shapes: another width than the rows": lambda: binding(decoder(), ".gain", shape=(64,)),
    "weight-shapes: no dense layer, another width": lambda: pool_without_dense((3, 16)),
    "weight-shapes: no head, another width": lambda: pool_without_dense(None),
    "param-relations: heads": lambda: params(decoder(), ATTENTION, num_kv_heads=3),
    "param-relations: odd rotation": lambda: params(decoder(), ATTENTION, rotary_dim=7),
    "param-relations: more rotation than head": lambda: params(decoder(), ATTENTION, rotary_dim=10),
    "param-relations: q8_0 of 8": lambda: params(decoder(), ATTENTION, kv_dtype=DType.Q8_0),
    "param-relations: clamped without limit": lambda: params(
        decoder(), MLP, activation=Activation.SWIGLU_CLAMPED, alpha=1.0
    ),
    "param-relations: alpha for nothing": lambda: params(decoder(), MLP, alpha=1.0),
    "param-relations: groups of experts": lambda: params(mixers(Stage.DECODE), MOE, num_groups=3),
    "param-relations: more groups than there are": lambda: params(mixers(Stage.DECODE), MOE, top_groups=3),
    "param-relations: more experts than chosen groups": lambda: params(mixers(Stage.DECODE), MOE, experts_per_token=5),
    "param-relations: sum of two of one": lambda: params(
        mixers(Stage.DECODE), MOE, 1, group_score=GroupScore.SUM_TOP2, num_groups=4, top_groups=4
    ),
    "param-relations: mamba with heads": lambda: params(mixers(Stage.DECODE), MAMBA, heads=4),
    "param-relations: mamba-2 with dt rank": lambda: params(mixers(Stage.DECODE), MAMBA, 1, dt_rank=4),
    "param-relations: mamba-2 heads": lambda: params(mixers(Stage.DECODE), MAMBA, 1, heads=7),
    "param-relations: mamba-2 norm of dt": lambda: params(mixers(Stage.DECODE), MAMBA, 1, norm=MambaNorm.RMS_DT_B_C),
    "param-relations: dt bounds": lambda: params(mixers(Stage.DECODE), MAMBA, 1, dt_max=0.0001),
    "param-relations: odd latent rotation": lambda: params(mixers(Stage.DECODE), MLA, rope_dim=5),
    "param-relations: delta heads": lambda: params(mixers(Stage.DECODE), DELTA, num_k_heads=3),
    "param-relations: offset beyond the table": lambda: params(encoder(), EMBED, position_offset=130),
}


@pytest.mark.parametrize("case", STAGE_CASES)
def test_one_rule_alone_refuses(case):
    compiled = STAGE_CASES[case]()
    name = case.partition(":")[0]
    assert broken(compiled) == {name}
    (rule,) = (rule for rule in RULES if rule.name == name)
    with pytest.raises(InvalidPlan, match=rf"^{compiled.stage.name.lower()}: .*\[{name}\]$") as caught:
        verify(compiled)
    assert type(caught.value) is rule.error


def vision_model(**changes):
    return replace(zoo(), **changes)


def handoff(nth=0, **fields):
    return edit(zoo(), ["handoffs", nth], lambda h: replace(h, **fields))


def narrow_scatter():
    """A scatter stage for image rows of another width than the vision stage gives."""
    changed = scatter()
    specs = tuple(replace(s, shape=(*s.shape[:-1], 16)) if len(s.shape) == 2 else s for s in changed.register_specs)
    bindings = tuple(replace(b, shape=(b.shape[0], 16)) for b in changed.weight_bindings)
    return replace(changed, register_specs=specs, weight_bindings=bindings)


def facts(**fields):
    return edit(model(prefill=decoder(Stage.PREFILL), decode=decoder()), ["facts"], lambda f: replace(f, **fields))


def smaller_pages():
    d = decoder()
    for i in range(len(d.plan.state_descs)):
        d = state(d, i, page_tokens=32, size_bytes=4096)
    return d


MODEL_CASES = {
    "identity: no name": lambda: facts(model_type=""),
    "identity: a name that moves the cursor": lambda: facts(model_type="a\x1b[A"),
    "identity: no words": lambda: facts(vocab_size=0),
    "identity: 2^41 positions": lambda: facts(max_positions=1 << 41),
    "identity: no hash": lambda: replace(facts(), config_hash=""),
    "stage-slots: nothing": lambda: model(),
    "stage-slots: decode in the place of prefill": lambda: model(prefill=decoder(), decode=decoder()),
    "stage-slots: no decode": lambda: model(prefill=decoder(Stage.PREFILL)),
    "shared-state: other pages": lambda: model(prefill=decoder(Stage.PREFILL), decode=smaller_pages()),
    "handoff-stages: from a stage that is not there": lambda: vision_model(vision_encode=None),
    "handoff-stages: backwards": lambda: replace(
        zoo(),
        handoffs=(
            replace(
                zoo().handoffs[1],
                source=Stage.PREFILL,
                target=Stage.SCATTER,
                owner=Stage.SCATTER,
                source_register=zoo().prefill.plan.outputs[0],
                target_register=zoo().scatter.plan.inputs[0],
            ),
        ),
    ),
    "handoff-stages: a stranger as owner": lambda: handoff(owner=Stage.ENCODE),
    "handoff-registers: not an output": lambda: handoff(source_register=0),
    "handoff-registers: not an input": lambda: handoff(target_register=2),
    "handoff-registers: filled twice": lambda: vision_model(handoffs=(zoo().handoffs[0],) * 2),
    "handoff-specs: another dtype": lambda: handoff(dtype=DType.F16),
    "handoff-specs: another width": lambda: vision_model(scatter=narrow_scatter(), handoffs=zoo().handoffs[:1]),
}


@pytest.mark.parametrize("case", MODEL_CASES)
def test_one_model_rule_alone_refuses(case):
    plans = MODEL_CASES[case]()
    name = case.partition(":")[0]
    found = {rule.name for rule in MODEL_RULES if next(rule.check(plans), None) is not None}
    if case != "handoff-stages: backwards":  # registers cannot fit both ways, so the specs differ too
        assert found == {name}
    assert all(broken(compiled) == set() for compiled in plans.stages())
    (rule,) = (rule for rule in MODEL_RULES if rule.name == name)
    with pytest.raises(InvalidPlan, match=rf"\[{name}\]$") as caught:
        verify(plans)
    assert type(caught.value) is rule.error


def test_every_rule_has_a_plan_that_only_it_refuses():
    tried = {case.partition(":")[0] for case in (*STAGE_CASES, *MODEL_CASES)}
    assert tried | {"param-values", "features"} == {rule.name for rule in (*RULES, *MODEL_RULES)}
    assert len({rule.name for rule in (*RULES, *MODEL_RULES)}) == len(RULES) + len(MODEL_RULES)


def test_the_zoo_is_well_formed_and_complete():
    plans = zoo()
    verify(plans)
    used = {i.opcode for compiled in plans.stages() for i in compiled.plan.instructions}
    assert used == set(Opcode)
    weights = [w for p in (plans, joined()) for compiled in p.stages() for w in compiled.weight_bindings]
    transforms = {t.kind for w in weights for s in w.sources for t in s.transforms}
    generators = {w.generator.kind for w in weights if w.generator}
    assert transforms == set(TransformKind)
    assert generators == set(GeneratorKind)


def test_a_message_names_stage_instruction_and_what_was_expected():
    with pytest.raises(InvalidRegisterSpec) as caught:
        verify(last(decoder(), "shape", (Symbol.SAMPLED, 95)))
    assert str(caught.value) == (
        "decode: instruction 14 (lm_head): logits (register 15, [sampled 95]) has vocab = 95, expected 96 [port-shapes]"
    )
    with pytest.raises(InvalidStateDescriptorBinding) as caught:
        verify(state(decoder(), size_bytes=8193))
    assert "instruction 2 (multihead_attention): state 0 has pages of 8193 bytes, the params need 8192" in str(
        caught.value
    )


@pytest.mark.parametrize("count", [0, 65535, 1 << 62, -5])
def test_hostile_register_counts_end_quickly(count):
    with pytest.raises(InvalidPlan, match="plan-size"):
        verify(edit(decoder(), ["plan", "register_count"], count))


def test_two_descriptors_of_one_id():
    with pytest.raises(InvalidStateDescriptorBinding, match="state-ids"):
        verify(state(decoder(), 1, id=0))
