"""The parameter ABI: layouts are frozen, packing is exact, and a foreign layout is refused."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.plan.edits import replace
from tests.plan.zoo import zoo

from treadle import _native
from treadle.errors import InvalidParamBlockABI
from treadle.plan import upgrade
from treadle.plan.ir import ModelPlans, Opcode, ParamBlock
from treadle.plan.ops import OPS
from treadle.plan.param_struct import F32, MAX_PAYLOAD, U32, Params, header, layout
from treadle.plan.params import (
    PARAMS,
    AttentionParams,
    GatedDeltaNetParams,
    LMHeadParams,
    MambaParams,
    MLAParams,
    RMSNormParams,
    ShortConvParams,
    abi,
    check_abi,
    unpack,
)
from treadle.plan.rules.values import RANGES, REQUIRED_IFF

FROZEN = {
    "0.1": "eps f, gain_offset f",
    "1.1": "num_heads I, num_kv_heads I, head_dim I, v_head_dim I, scale f, causal I, window I, rotary_dim I, "
    "rope_style I, rope_scale f, softcap f, qk_norm I, qk_norm_eps f, qk_norm_gain_offset f, qkv_clip f, "
    "output_gate I, kv_dtype I",
    "2.1": "intermediate I, gated I, activation I, alpha f, limit f",
    "3.1": "num_experts I, experts_per_token I, intermediate I, gated I, activation I, alpha f, limit f, "
    "router_score I, normalise I, normalise_eps f, routed_scale f, num_groups I, top_groups I, group_score I, "
    "shared_intermediate I",
    "4.1": "generation I, inner I, state I, conv_width I, dt_rank I, heads I, groups I, norm I, norm_groups I, "
    "norm_eps f, dt_min f, dt_max f, activation I",
    "5.1": "inner I, conv_width I",
    "6.1": "num_heads I, q_lora_rank I, kv_lora_rank I, nope_dim I, rope_dim I, v_head_dim I, scale f, norm_eps f, "
    "rope_style I, rope_scale f, causal I, kv_dtype I",
    "7.1": "vocab I, scale f, max_positions I, position_offset I, types I",
    "8.1": "scale f",
    "9.1": "num_k_heads I, num_v_heads I, k_head_dim I, v_head_dim I, conv_width I, norm_eps f, activation I",
    "10.1": "eps f, gain_offset f",
    "11.1": "vocab I, scale f, softcap f",
    "12.1": "out_dim I, pooling I, normalise I, head_activation I, norm_eps f, out_activation I",
    "16.1": "patch_size I, temporal_patch_size I, channels I, grid_positions I",
    "17.1": "merge I, hidden I, intermediate I, norm_eps f, norm_after_merge I, activation I",
    "18.1": "merge I, hidden I, intermediate I, norm_eps f, norm_after_merge I, activation I",
    "19.1": "placeholder I",
}
"""What contract v1 publishes. A change here is a new version, never an edit."""


def test_published_layouts_never_change():
    found = {key: ", ".join(f"{name} {code}" for name, code, _ in fields) for key, fields in abi().items()}
    assert found == FROZEN
    assert all(at == 4 * i for fields in abi().values() for i, (_, _, at) in enumerate(fields))


def test_every_opcode_has_params_ranges_and_a_spec():
    assert {opcode for opcode, _ in PARAMS} == set(OPS) == set(Opcode)
    assert set(PARAMS.values()) == set(RANGES) == {spec.params for spec in OPS.values()}
    for cls in PARAMS.values():
        assert set(RANGES[cls]) == set(cls.__struct_fields__)
        assert set(REQUIRED_IFF.get(cls, {})) <= {slot.name for slot in OPS[cls.OPCODE].weights if slot.optional}


def test_payloads_are_padded_and_small():
    for compiled in zoo().stages():
        for block in compiled.param_blocks:
            assert len(block.payload) % 8 == 0
            assert len(block.payload) <= MAX_PAYLOAD
            assert header(block) == bytes([block.abi_version, block.opcode]) + struct.pack("<HI", len(block.payload), 0)


def test_bytes_of_a_known_block():
    block = LMHeadParams(49152, 0.5, 30.0).pack()
    assert block == ParamBlock(1, Opcode.LM_HEAD, bytes.fromhex("00c00000 0000003f 0000f041 00000000"))


@st.composite
def any_params(draw):
    cls = draw(st.sampled_from(sorted(PARAMS.values(), key=lambda c: c.OPCODE)))
    kinds = {"I": st.integers(0, 2**32 - 1), "f": st.floats(width=32, allow_nan=False)}
    return cls(*(draw(kinds[code]) for _, code in layout(cls)))


@given(any_params())
def test_pack_and_unpack_are_inverse(params):
    assert unpack(params.pack()) == params


def test_values_that_do_not_fit_are_refused_on_packing():
    for bad in (-1, 1 << 32, 0.5, "x"):
        with pytest.raises(InvalidParamBlockABI, match="lm_head"):
            LMHeadParams(bad).pack()


def test_damaged_blocks_are_refused():
    block = LMHeadParams(96).pack()
    for payload in (b"", block.payload[:-1], block.payload + b"\0"):
        with pytest.raises(InvalidParamBlockABI, match=f"payload of {len(payload)} bytes, expected 16"):
            unpack(replace(block, payload=payload))
    with pytest.raises(InvalidParamBlockABI, match="padding"):
        unpack(replace(block, payload=block.payload[:-1] + b"\1"))
    with pytest.raises(InvalidParamBlockABI, match=r"version 9 is unknown; known: \[1\]"):
        unpack(replace(block, abi_version=9))


def test_the_native_core_mirrors_every_layout():
    check_abi(_native.abi())


def test_the_handshake_names_the_first_difference():
    check_abi(abi())
    check_abi({key: [list(field) for field in fields] for key, fields in abi().items()})
    for broken in (
        {**abi(), "11.1": [("vocab", "I", 0), ("scale", "f", 8), ("softcap", "f", 12)]},
        {**abi(), "11.1": abi()["11.1"][:-1]},
        {**abi(), "11.2": abi()["11.1"]},
        {key: fields for key, fields in abi().items() if key != "11.1"},
    ):
        with pytest.raises(InvalidParamBlockABI, match=r"params 11\.[12]"):
            check_abi(broken)


STATES = {
    # kv: 64 tokens x 2 heads x (8 + 16) x 2 bytes
    AttentionParams(4, 2, 8, 16, 1.0, kv_dtype=1): 64 * 2 * 24 * 2,
    AttentionParams(4, 2, 8, 16, 1.0, kv_dtype=0): 64 * 2 * 24 * 4,
    AttentionParams(4, 2, 64, 32, 1.0, kv_dtype=36): 64 * 2 * 3 * 34,
    MLAParams(4, 0, 32, 8, 64, 8, 1.0, 0.0, kv_dtype=36): 64 * 3 * 34,
    # no block of 32 fits
    AttentionParams(4, 2, 32, 16, 1.0, kv_dtype=36): 0,
    # latent: 64 tokens x (kv_lora 16 + rope 4) x 4 bytes
    MLAParams(4, 0, 16, 8, 4, 8, 1.0, 0.0): 64 * 20 * 4,
    # conv 24 x 3, scan 24 x 4
    MambaParams(1, 24, 4, 4, dt_rank=2): 4 * (24 * 3 + 24 * 4),
    # conv (64 + 2 x 2 x 16) x 3, scan 64 x 16
    MambaParams(2, 64, 16, 4, heads=8, groups=2): 4 * ((64 + 64) * 3 + 64 * 16),
    ShortConvParams(32, 3): 4 * 32 * 2,
    # conv (2 x 2 x 8 + 4 x 6) x 3, delta 4 x 8 x 6
    GatedDeltaNetParams(2, 4, 8, 6, 4, 0.0): 4 * (56 * 3 + 4 * 8 * 6),
}


@pytest.mark.parametrize("params", STATES, ids=lambda p: type(p).__name__)
def test_state_sizes(params):
    assert params.state_page_bytes(64) == STATES[params]


class RMSNormV2(Params, frozen=True):
    """A later layout, for the tests only: eps squared, and a field more."""

    OPCODE = Opcode.RMSNORM
    VERSION = 2
    eps_squared: F32
    gain_offset: F32
    groups: U32


class RMSNormV3(Params, frozen=True):
    OPCODE = Opcode.RMSNORM
    VERSION = 3
    groups: U32
    eps: F32


LAYOUTS = {**PARAMS, (Opcode.RMSNORM, 2): RMSNormV2, (Opcode.RMSNORM, 3): RMSNormV3}
UPGRADES = {
    (Opcode.RMSNORM, 1): lambda p: RMSNormV2(p.eps * p.eps, p.gain_offset, 1),
    (Opcode.RMSNORM, 2): lambda p: RMSNormV3(p.groups, math.sqrt(p.eps_squared)),
}
THREE = upgrade.ParamVersions(LAYOUTS, UPGRADES, RANGES)


def test_old_blocks_are_lifted_step_by_step():
    lifted = upgrade.upgrade_block(RMSNormParams(0.5, 1.0).pack(), THREE)
    assert RMSNormV3.unpack(lifted) == RMSNormV3(1, 0.5)
    assert (lifted.abi_version, lifted.opcode) == (3, Opcode.RMSNORM)
    assert upgrade.upgrade_block(lifted, THREE) is lifted
    second = RMSNormV2(0.25, 0.0, 4).pack()
    assert RMSNormV3.unpack(upgrade.upgrade_block(second, THREE)) == RMSNormV3(4, 0.5)


def test_a_whole_model_is_lifted():
    plans = zoo()
    assert upgrade.upgrade_params(plans) is plans
    lifted = upgrade.upgrade_params(plans, THREE)
    assert isinstance(lifted, ModelPlans)
    for before, after in zip(plans.stages(), lifted.stages(), strict=True):
        assert replace(after, param_blocks=before.param_blocks) == before
        for old, new in zip(before.param_blocks, after.param_blocks, strict=True):
            assert new.abi_version == (3 if old.opcode == Opcode.RMSNORM else 1)
            assert new == old or new.opcode == Opcode.RMSNORM


def test_versions_outside_the_window_are_refused():
    block = RMSNormParams(0.5).pack()
    ended = {key: cls for key, cls in LAYOUTS.items() if key != (Opcode.RMSNORM, 1)}
    with pytest.raises(InvalidParamBlockABI, match=r"rmsnorm: params version 1 is not accepted; .* \[2, 3\]"):
        upgrade.upgrade_block(block, replace(THREE, layouts=ended))
    with pytest.raises(InvalidParamBlockABI, match="version 4 is not accepted"):
        upgrade.upgrade_block(replace(block, abi_version=4), THREE)
    with pytest.raises(InvalidParamBlockABI, match="version 1 is not accepted"):
        upgrade.upgrade_block(block, replace(THREE, upgrades={}))
    with pytest.raises(InvalidParamBlockABI, match="gives version 1"):
        upgrade.upgrade_block(block, replace(THREE, upgrades={(Opcode.RMSNORM, 1): lambda p: p}))


def test_a_damaged_old_block_is_refused():
    block = replace(RMSNormParams(0.5).pack(), payload=b"\0" * 4)
    with pytest.raises(InvalidParamBlockABI, match="payload of 4 bytes"):
        upgrade.upgrade_block(block, THREE)
