"""A change of an op's params, rehearsed from its first version to the deletion of that version (see rehearsal.py)."""

from __future__ import annotations

import shutil

import pytest
from tests.plan.rehearsal import GOLDEN, PLANS, RELEASES, WINDOWS, NormV2, norms, write

from treadle.errors import InvalidInstructionBinding, InvalidParamBlockABI, InvalidRequest
from treadle.plan.codec import encode, load, save
from treadle.plan.downgrade import downgrade_params, versions_of
from treadle.plan.params import unpack
from treadle.plan.verify import verify
from treadle.plan.versions import accepted, held, parse, problems

V1_FILE, V2_FILE = GOLDEN / "version_1.plan", GOLDEN / "version_2.plan"


def wrong_at(release: str, code: str, golden=GOLDEN) -> list[str]:
    """What the check of windows says where the package has one release's number and another one's code."""
    return list(problems(release, parse(WINDOWS), accepted(RELEASES[code]), held(golden)))


def params_of(plans, release: str):
    return [unpack(block, RELEASES[release].layouts) for block in plans.encode.param_blocks]


def refusal(path, release: str) -> str:
    with pytest.raises(InvalidParamBlockABI) as caught:
        load(path, RELEASES[release])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", PLANS)
def test_the_releases_write_the_golden_files(name, tmp_path):
    release, plans = PLANS[name]
    write(tmp_path)
    assert (tmp_path / f"{name}.plan").read_bytes() == (GOLDEN / f"{name}.plan").read_bytes()
    assert load(GOLDEN / f"{name}.plan", RELEASES[release]) == plans


def test_inside_the_window_both_versions_load_as_the_newest():
    old, new = load(V1_FILE, RELEASES["0.2.0"]), load(V2_FILE, RELEASES["0.2.0"])
    assert params_of(old, "0.2.0") == [NormV2(pytest.approx(1e-6)), NormV2(pytest.approx(1e-5), 1.0, groups=1)]
    assert params_of(new, "0.2.0") == [NormV2(pytest.approx(1e-6)), NormV2(pytest.approx(1e-5), 1.0, groups=4)]
    assert load(V1_FILE, RELEASES["0.2.0"]) == old  # pure
    assert wrong_at("0.2.0", "0.2.0") == []


def test_an_upgraded_plan_is_written_in_the_newest_version(tmp_path):
    save(load(V1_FILE, RELEASES["0.2.0"]), tmp_path / "again.plan", RELEASES["0.2.0"])
    assert held(tmp_path) == {("contract", 1), ("rmsnorm", 2)}
    with pytest.raises(InvalidParamBlockABI, match="version 1, expected 2"):
        encode(PLANS["version_1"][1], RELEASES["0.2.0"])


def test_the_release_before_refuses_the_newer_version_by_name():
    assert refusal(V2_FILE, "0.1.0") == (
        f"{V2_FILE}: rmsnorm: params version 2 is not accepted; this release reads [1]; "
        "compile the plan with this release"
    )


def test_a_plan_goes_back_to_the_release_before(tmp_path):
    """Release 0.2.0 writes what 0.1.0 reads: byte by byte what 0.1.0 itself had written."""
    before = versions_of("0.1.0", parse(WINDOWS), RELEASES["0.2.0"])
    plans = load(V1_FILE, RELEASES["0.2.0"])
    save(downgrade_params(plans, before, RELEASES["0.2.0"]), tmp_path / "back.plan", before)
    assert (tmp_path / "back.plan").read_bytes() == V1_FILE.read_bytes()
    assert load(tmp_path / "back.plan", RELEASES["0.1.0"]) == PLANS["version_1"][1]
    assert load(tmp_path / "back.plan", RELEASES["0.2.0"]) == plans


def test_what_the_release_before_cannot_say_is_refused_by_name():
    before = versions_of("0.1.0", parse(WINDOWS), RELEASES["0.2.0"])
    plans = load(V2_FILE, RELEASES["0.2.0"])
    with pytest.raises(InvalidParamBlockABI, match=r"rmsnorm: params version 1 cannot say .*groups=4"):
        downgrade_params(plans, before, RELEASES["0.2.0"])
    gone = versions_of("0.1.0", parse(WINDOWS), RELEASES["0.3.0"])
    with pytest.raises(InvalidParamBlockABI, match="rmsnorm: no version that the release reads is known here"):
        downgrade_params(plans, gone, RELEASES["0.3.0"])
    with pytest.raises(InvalidRequest, match=r"release 0\.0\.9 does not read contract version 1"):
        versions_of("0.0.9", parse(WINDOWS), RELEASES["0.2.0"])


def test_the_release_itself_has_nothing_to_take_back(tmp_path):
    now = versions_of("0.2.0", parse(WINDOWS), RELEASES["0.2.0"])
    plans = load(V2_FILE, RELEASES["0.2.0"])
    assert downgrade_params(plans, now, RELEASES["0.2.0"]) == plans
    assert now.layouts == RELEASES["0.2.0"].layouts and now.upgrades == RELEASES["0.2.0"].upgrades


def test_values_of_the_new_version_are_checked():
    with pytest.raises(InvalidInstructionBinding, match="groups is 0, expected 1"):
        verify(norms(NormV2(1e-6, groups=0)), RELEASES["0.2.0"])


def test_the_milestone_cannot_be_passed_before_everything_is_deleted(tmp_path):
    golden = shutil.copytree(GOLDEN, tmp_path / "golden")
    code = "rmsnorm 1 ended at 0.3.0, but the code still reads it"
    files = "rmsnorm 1 ended at 0.3.0, but its golden files are still there"
    assert wrong_at("0.3.0", "0.2.0", golden) == [code, files]
    assert wrong_at("0.3.0", "0.3.0", golden) == [files]
    (golden / V1_FILE.name).unlink()
    assert wrong_at("0.3.0", "0.2.0", golden) == [code]
    assert wrong_at("0.3.0", "0.3.0", golden) == []


def test_nothing_may_be_deleted_before_the_milestone(tmp_path):
    assert wrong_at("0.2.9", "0.3.0") == ["rmsnorm 1 is inside its window, but the code does not read it"]
    golden = shutil.copytree(GOLDEN, tmp_path / "golden")
    (golden / V1_FILE.name).unlink()
    assert wrong_at("0.2.9", "0.2.0", golden) == ["rmsnorm 1 is inside its window, but no golden file holds it"]


def test_after_the_milestone_the_old_version_is_refused_by_name():
    assert load(V2_FILE, RELEASES["0.3.0"]) == load(V2_FILE, RELEASES["0.2.0"])
    assert refusal(V1_FILE, "0.3.0") == (
        f"{V1_FILE}: rmsnorm: params version 1 is not accepted; this release reads [2]; "
        "compile the plan with this release"
    )


def test_a_file_of_the_future_is_refused_by_this_release(tmp_path):
    """The same through the release at hand, whatever its newest version is."""
    future = type("Future", (NormV2,), {"VERSION": 200, "__annotations__": {}}, frozen=True)
    versions = RELEASES["0.2.0"]
    key = (NormV2.OPCODE, 200)
    release = type(versions)({key: future}, {}, {future: versions.ranges[NormV2]})
    save(norms(future(1e-6)), tmp_path / "future.plan", release)
    with pytest.raises(InvalidParamBlockABI, match=r"future\.plan: rmsnorm: params version 200 is not accepted"):
        load(tmp_path / "future.plan")
