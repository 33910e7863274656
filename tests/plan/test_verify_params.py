"""Every field of every op's params over its range, and every optional weight against what the params say."""

from __future__ import annotations

import pytest
from tests.plan.edits import edit, replace, slot, with_weight
from tests.plan.refusals import broken
from tests.plan.zoo import encoder, mixers, scatter, vision, zoo

from treadle.plan.ir import NO_WEIGHT, Stage
from treadle.plan.param_struct import Params
from treadle.plan.rules.subject import Subject

INSTRUCTIONS = [
    (stage, i)
    for stage, compiled in zip(
        ("vision_encode", "scatter", "decode", "encode"),
        (vision(), scatter(), mixers(Stage.DECODE), encoder()),
        strict=True,
    )
    for i in range(len(compiled.plan.instructions))
]


def with_params(compiled, index: int, changed: Params):
    """The plan with one instruction's params replaced, in a block of its own; blocks without a user go."""
    blocks = [*compiled.param_blocks, changed.pack()]
    ids = [len(blocks) - 1 if i == index else ins.param_block_id for i, ins in enumerate(compiled.plan.instructions)]
    kept = sorted(set(ids))
    instructions = tuple(
        replace(ins, param_block_id=kept.index(block_id))
        for ins, block_id in zip(compiled.plan.instructions, ids, strict=True)
    )
    compiled = edit(compiled, ["plan", "instructions"], instructions)
    return replace(compiled, param_blocks=tuple(blocks[block_id] for block_id in kept))


OUT_OF_RANGE = {
    "size": (
        "num_heads num_kv_heads head_dim v_head_dim intermediate num_experts experts_per_token num_groups "
        "top_groups inner state conv_width groups norm_groups kv_lora_rank nope_dim rope_dim num_k_heads "
        "num_v_heads k_head_dim vocab out_dim patch_size temporal_patch_size channels merge hidden",
        [0, 2**32 - 1],
    ),
    "count": (
        "rotary_dim shared_intermediate dt_rank heads q_lora_rank max_positions position_offset types "
        "grid_positions window placeholder",
        [2**32 - 1],
    ),
    "flag": ("causal output_gate gated normalise norm_after_merge", [2]),
    "enum": (
        "rope_style qk_norm kv_dtype activation router_score group_score norm pooling head_activation out_activation",
        [77],
    ),
    "positive": ("rope_scale", [0.0, -1.0, float("nan"), float("inf")]),
    "at least 0": (
        "softcap qk_norm_eps qkv_clip alpha limit normalise_eps norm_eps dt_min eps",
        [-1.0, float("nan"), float("inf")],
    ),
    "finite": ("qk_norm_gain_offset gain_offset routed_scale scale", [float("nan"), float("inf"), -float("inf")]),
    "dt_max": ("dt_max", [0.0, float("nan")]),
    "generation": ("generation", [0, 3]),
}
BAD_VALUES = {name: values for names, values in OUT_OF_RANGE.values() for name in names.split()}


@pytest.mark.parametrize(("stage", "index"), INSTRUCTIONS)
def test_every_field_has_a_range(stage, index):
    compiled = getattr(zoo(), stage)
    found = Subject(compiled).ops[index].params
    for field in found.__struct_fields__:
        for bad in BAD_VALUES[field]:
            changed = with_params(compiled, index, replace(found, **{field: bad}))
            assert broken(changed) == {"param-values"}, (type(found).__name__, field, bad)


FREE_SLOTS = {
    "rmsnorm": "gain",
    "multihead_attention": "q_bias k_bias v_bias o_bias sinks slopes",
    "swiglu": "up_bias down_bias",
    "moe": "router_bias up_bias down_bias",
    "mamba_mixer": "in_bias conv_bias out_bias",
    "shortconv": "in_bias conv_bias out_bias",
    "mla_attention": "kv_a_bias o_bias",
    "gated_delta_net": "conv_bias",
    "layernorm": "gain bias",
    "lm_head": "bias",
    "vision_patch_embed": "bias",
    "vision_spatial_merge": "fc1_bias",
    "vision_deepstack_extract": "norm_bias fc1_bias fc2_bias",
}
"""Weights that may be there or not, whatever the params say; all other optional ones follow from the params."""
FREE_ONCE = {
    ("swiglu", "gate_bias"): "gate",
    ("moe", "gate_bias"): "gate",
    ("moe", "shared_router"): "shared_up",
    ("mla_attention", "q_a_bias"): "q_a",
    ("vision_spatial_merge", "norm_bias"): "norm",
    ("vision_spatial_merge", "fc2_bias"): "fc2",
    ("pool", "dense_bias"): "dense",
    ("pool", "norm_bias"): "norm",
    ("pool", "head_bias"): "head",
}
"""Free where another weight is there."""
FREE_BY_PARAMS = {
    ("moe", "score_correction"): lambda p: p.router_score != 1,
    ("mamba_mixer", "dt_norm"): lambda p: p.norm == 2,
    ("mamba_mixer", "b_norm"): lambda p: p.norm == 2,
    ("mamba_mixer", "c_norm"): lambda p: p.norm == 2,
}


@pytest.mark.parametrize(("stage", "index"), INSTRUCTIONS)
def test_weights_agree_with_the_params(stage, index):
    """Every optional weight is taken away or added: accepted where it is free, else refused by `features`."""
    compiled = getattr(zoo(), stage)
    op = Subject(compiled).ops[index]
    nth = [i for i, ins in enumerate(compiled.plan.instructions) if ins.opcode == op.spec.opcode].index(index)
    for weight in op.spec.weights:
        if not weight.optional:
            continue
        key = (op.spec.name, weight.name)
        free = weight.name in FREE_SLOTS.get(op.spec.name, "").split()
        free |= FREE_ONCE.get(key) in op.present
        free |= key in FREE_BY_PARAMS and FREE_BY_PARAMS[key](op.params)
        if weight.name in op.present:
            changed = slot(compiled, op.spec.opcode, weight.name, NO_WEIGHT, nth)
        else:
            sizes = {"hidden": 32, **op.params.dims()}
            shape = tuple(sizes[word] or 2 for word in weight.shape)
            changed = with_weight(compiled, op.spec.opcode, weight.name, shape, nth)
        # Taking away a layer of a pooled head or a merger leaves its bias, and may leave widths that differ.
        expected = set() if free else {"features"}
        if key in {("pool", "head"), ("vision_spatial_merge", "fc2")}:
            expected = {"features", "weight-shapes"}
        assert broken(changed) == expected, key
