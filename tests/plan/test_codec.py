"""The plan file: canonical, hashed, strict, atomic; damage of any kind ends in InvalidPlan."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.plan.builder import Builder, decoder, model
from tests.plan.edits import edit, replace
from tests.plan.zoo import zoo

from treadle.errors import InvalidParamBlockABI, InvalidPlan
from treadle.plan import codec
from treadle.plan.codec import decode, encode, load, plan_hash, save
from treadle.plan.ir import CONTRACT_VERSION, DType, ModelPlans, Stage, Symbol
from treadle.plan.params import AttentionParams, RMSNormParams
from treadle.plan.verify import verify

HEADER = 12
SMALL = model(prefill=decoder(Stage.PREFILL, 1), decode=decoder(layers=1))
SMALL_FILE = encode(SMALL)
ZOO_FILE = encode(zoo())


def sealed(body: bytes) -> bytes:
    """A file with a hash that fits, as an attacker would make it."""
    return body + hashlib.sha256(body).digest()


def with_payload(value: object) -> bytes:
    return sealed(SMALL_FILE[:HEADER] + msgspec.msgpack.encode(value))


def plain() -> list:
    """The small file's payload as plain lists."""
    return msgspec.msgpack.decode(SMALL_FILE[HEADER:-32])


def test_layout_of_the_file():
    assert SMALL_FILE[:8] == b"TREADLE\0"
    assert int.from_bytes(SMALL_FILE[8:12], "little") == CONTRACT_VERSION == 1
    assert hashlib.sha256(SMALL_FILE[:-32]).digest() == SMALL_FILE[-32:]
    assert plan_hash(SMALL) == SMALL_FILE[-32:].hex()
    facts, config_hash, compiler_version, *_ = plain()
    assert (facts[0], config_hash, compiler_version) == ("tiny", "0" * 64, "0.1.0")


def test_the_zoo_round_trips():
    plans = zoo()
    data = encode(plans)
    assert decode(data) == plans
    assert encode(decode(data)) == data


def test_the_hash_tells_plans_apart():
    other = edit(SMALL, ["prefill", "diagnostics"], ("x",))
    assert plan_hash(other) != plan_hash(SMALL)


@pytest.mark.parametrize("data", [SMALL_FILE, ZOO_FILE], ids=["small", "zoo"])
def test_every_truncation_is_refused(data):
    for length in range(len(data)):
        with pytest.raises(InvalidPlan):
            decode(data[:length])
    with pytest.raises(InvalidPlan):
        decode(data + b"\0")


def test_every_bit_flip_is_refused():
    for at in range(len(SMALL_FILE)):
        for bit in range(8):
            with pytest.raises(InvalidPlan):
                decode(flipped(SMALL_FILE, at, 1 << bit))
    for at in range(len(ZOO_FILE)):
        with pytest.raises(InvalidPlan):
            decode(flipped(ZOO_FILE, at, 1 << at % 8))


def flipped(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def accepted_only_if_right(data: bytes) -> None:
    """Whatever decodes is well formed and has this very file: nothing is coerced or passed over."""
    try:
        plans = decode(data)
    except InvalidPlan:
        return
    verify(plans)
    assert encode(plans) == data


def test_damage_under_a_fitting_hash_never_crashes():
    b = Builder(Stage.ENCODE)
    attention = AttentionParams(2, 1, 4, 4, 0.5, causal=0, rotary_dim=4)
    x = b.op(attention, [b.input(DType.F32, Symbol.ROWS, 8)], "q_bias rope_inv_freq")
    body = encode(model(encode=b.finish(b.op(RMSNormParams(1e-5), [x]))))[:-32]
    for at in range(len(body)):
        for bits in (0x01, 0x10, 0x80, 0xFF):
            accepted_only_if_right(sealed(flipped(body, at, bits)))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_edits_under_a_fitting_hash_never_crash(data):
    body = bytearray(ZOO_FILE[:-32])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(HEADER, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    accepted_only_if_right(sealed(bytes(body)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_payloads_are_refused(payload):
    with pytest.raises(InvalidPlan):
        decode(payload)
    with pytest.raises(InvalidPlan):
        decode(sealed(SMALL_FILE[:HEADER] + payload))


def changed(path, value):
    payload = plain()
    *outer, last = path
    target = payload
    for key in outer:
        target = target[key]
    target[last] = value
    return with_payload(payload)


PREFILL = 5
WRONG_TYPES = {
    "a number for text": ([0, 0], 7),
    "a truth value for a number": ([0, 1], True),
    "a fraction for a number": ([0, 1], 96.0),
    "text for a number": ([0, 1], "96"),
    "nothing for a number": ([0, 1], None),
    "an unknown opcode": ([PREFILL, 1, 0, 1, 0], 13),
    "a backend's opcode": ([PREFILL, 1, 0, 1, 0], 128),
    "a truth value for an opcode": ([PREFILL, 1, 0, 1, 0], False),
    "an unknown stage": ([PREFILL, 0], 9),
    "text for bytes": ([PREFILL, 2, 0, 2], "x" * 24),
    "a number for a truth value": ([PREFILL, 1, 2, 0, 3], 0),
    "a map for a struct": ([0], {"model_type": "tiny"}),
    "an extra field": ([0], ["tiny", 96, 32, 128, 2, 0]),
    "a field too few": ([0], ["tiny", 96, 32, 128]),
    "a number beyond 64 bits": ([0, 1], 1 << 63),
}


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_types_are_strict(case):
    with pytest.raises(InvalidPlan):
        decode(changed(*WRONG_TYPES[case]))


def test_the_edits_of_these_tests_hit_what_they_name():
    payload = plain()
    assert payload[0] == ["tiny", 96, 32, 128, 2]
    assert payload[PREFILL][0] == Stage.PREFILL
    assert payload[PREFILL][1][0][1][0] == 0  # rmsnorm
    assert isinstance(payload[PREFILL][1][2][0][3], bool)
    assert isinstance(payload[PREFILL][2][0][2], bytes)
    assert with_payload(payload) == SMALL_FILE


def test_another_encoding_of_the_same_plan_is_refused():
    facts = msgspec.msgpack.encode("tiny")
    assert SMALL_FILE.count(facts) == 1
    body = SMALL_FILE[:-32].replace(facts, b"\xd9\x04tiny")  # str 8 instead of fixstr
    assert msgspec.msgpack.decode(body[HEADER:]) == plain()
    with pytest.raises(InvalidPlan, match="canonical"):
        decode(sealed(body))


def test_trailing_data_is_refused():
    with pytest.raises(InvalidPlan):
        decode(sealed(SMALL_FILE[:-32] + b"\xc0"))


def test_deep_nesting_and_false_lengths_are_refused():
    header = SMALL_FILE[:HEADER]
    for payload in (b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\x9a\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        with pytest.raises(InvalidPlan):
            decode(sealed(header + payload))


def test_other_files_and_versions_are_refused_by_name():
    with pytest.raises(InvalidPlan, match="not a plan file"):
        decode(b"GGUF" + SMALL_FILE[4:])
    with pytest.raises(InvalidPlan, match="contract version 2; this release reads 1"):
        decode(sealed(SMALL_FILE[:8] + (2).to_bytes(4, "little") + SMALL_FILE[12:-32]))
    with pytest.raises(InvalidPlan, match="at most"):
        decode(bytes(codec.MAX_FILE_BYTES + 1))


def test_a_broken_plan_is_neither_written_nor_read():
    broken = edit(SMALL, ["prefill", "peak_registers"], 9)
    with pytest.raises(InvalidPlan, match="peak-registers"):
        encode(broken)
    with pytest.raises(InvalidPlan, match="peak-registers"):
        decode(with_payload(broken))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["facts", "vocab_size"], 96.0),
        (["prefill", "plan", "state_descs", 0, "zero_init"], 0),
        (["config_hash"], b"0"),
        (["prefill", "plan", "state_descs", 0, "align_bytes"], True),
        (["prefill", "diagnostics"], ["a list"]),
    ],
)
def test_fields_of_a_wrong_type_are_not_written(path, value):
    try:
        plans = edit(SMALL, path, value)
        data = encode(plans)
    except InvalidPlan:
        return
    pytest.fail(f"{path} = {value!r} was written: {len(data)} bytes")


def test_old_params_are_refused_by_version():
    broken = edit(SMALL, ["prefill", "param_blocks", 1, "abi_version"], 0)
    with pytest.raises(InvalidParamBlockABI, match="version 0 is not accepted; this release reads \\[1\\]"):
        decode(with_payload(broken))


def test_save_and_load(tmp_path):
    path = tmp_path / "model.plan"
    save(SMALL, path)
    assert load(path) == SMALL
    assert path.read_bytes() == SMALL_FILE
    assert [p.name for p in tmp_path.iterdir()] == ["model.plan"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.plan"
    save(SMALL, path)

    def fails(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        save(zoo(), path)
    assert path.read_bytes() == SMALL_FILE
    assert [p.name for p in tmp_path.iterdir()] == ["model.plan"]


def test_load_names_the_file(tmp_path):
    path = tmp_path / "model.plan"
    path.write_bytes(SMALL_FILE[:-1])
    with pytest.raises(InvalidPlan, match=r"model\.plan: the plan file is damaged"):
        load(path)


def test_the_same_plan_gives_the_same_bytes_in_another_process():
    code = (
        "import sys; from tests.plan.zoo import zoo; from treadle.plan.codec import plan_hash; print(plan_hash(zoo()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert run.stdout.strip() == plan_hash(zoo())


def test_an_empty_model_is_no_plan():
    with pytest.raises(InvalidPlan, match="stage-slots"):
        encode(ModelPlans(SMALL.facts, "0", "0.1.0"))


def test_stages_are_kept_apart():
    assert decode(encode(replace(SMALL, compiler_version="0.1.1"))).compiler_version == "0.1.1"


LONG = {
    "instructions": ([PREFILL, 1, 0], [0, [], [], [], None, None], 8193),
    "states": ([PREFILL, 1, 2], [0, 0, 0, False, 0, 0], 8193),
    "plan inputs": ([PREFILL, 1, 3], 0, 257),
    "operands": ([PREFILL, 1, 0, 0, 1], 0, 17),
    "weights of an op": ([PREFILL, 1, 0, 0, 3], 0, 65),
    "param blocks": ([PREFILL, 2], [1, 0, b""], 8193),
    "weights": ([PREFILL, 3], [0, "", [], [], [], None], 65535),
    "axes": ([PREFILL, 3, 0, 2], 1, 17),
    "dtypes": ([PREFILL, 3, 0, 3], 0, 65),
    "tensors": ([PREFILL, 3, 0, 4, 0, 1], "", 4097),
    "registers": ([PREFILL, 4], [0, [], 0], 65535),
    "last reads": ([PREFILL, 5, 0], 0, 65535),
    "kill sets": ([PREFILL, 5, 1], b"", 8193),
    "diagnostics": ([PREFILL, 7], "", 257),
    "handoffs": ([8], [0, 0, 0, 0, 0, 0, 0, 0, False], 65),
}


@pytest.mark.parametrize("what", LONG)
def test_long_lists_are_refused_before_they_are_read(what):
    """One item too many is refused by its count, so a file of any size costs what its accepted part costs."""
    path, item, count = LONG[what]
    with pytest.raises(InvalidPlan, match=f"length <= {count - 1}"):
        decode(changed(path, [item] * count))


def test_long_texts_are_refused():
    for path, value in (([0, 0], "x" * 513), ([PREFILL, 3, 0, 1], "x" * 513), ([PREFILL, 2, 0, 2], b"x" * 1025)):
        with pytest.raises(InvalidPlan, match="length <="):
            decode(changed(path, value))
