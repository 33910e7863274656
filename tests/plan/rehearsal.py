"""A change of one op's params carried through three releases, on a contract of its own: rmsnorm from version 1 to 2.

    0.1.0  writes and reads version 1
    0.2.0  version 2 adds `groups`; writes version 2, reads both
    0.3.0  the window of version 1 ends: its layout, its upgrade and its golden file are deleted

`python -m tests.plan.rehearsal DIRECTORY` writes the golden files that are missing; a published one stays.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.plan.builder import Builder, model

from treadle.plan.codec import save
from treadle.plan.ir import DType, ModelPlans, Opcode, Stage, Symbol
from treadle.plan.param_struct import F32, U32, Params
from treadle.plan.rules.values import FINITE, POSITIVE, SIZE
from treadle.plan.upgrade import ParamVersions

GOLDEN = Path(__file__).parents[1] / "golden" / "rehearsal"


class NormV1(Params, frozen=True):
    OPCODE = Opcode.RMSNORM
    eps: F32
    gain_offset: F32 = 0.0


class NormV2(Params, frozen=True):
    OPCODE = Opcode.RMSNORM
    VERSION = 2
    eps: F32
    gain_offset: F32 = 0.0
    groups: U32 = 1
    """Each of so many equal parts of a row is normalised by itself."""


def one_group(old: Params) -> NormV2:
    assert isinstance(old, NormV1)
    return NormV2(old.eps, old.gain_offset, groups=1)


V1 = {(Opcode.RMSNORM, 1): NormV1}
V2 = {(Opcode.RMSNORM, 2): NormV2}
V1_RANGES = {NormV1: {"eps": POSITIVE, "gain_offset": FINITE}}
V2_RANGES = {NormV2: {"eps": POSITIVE, "gain_offset": FINITE, "groups": SIZE}}

RELEASES = {
    "0.1.0": ParamVersions(V1, {}, V1_RANGES),
    "0.2.0": ParamVersions({**V1, **V2}, {(Opcode.RMSNORM, 1): one_group}, {**V1_RANGES, **V2_RANGES}),
    "0.3.0": ParamVersions(V2, {}, V2_RANGES),
}

WINDOWS = """
contract = [{ version = 1, introduced = "0.1.0" }]
params = [
    { opcode = "rmsnorm", version = 1, introduced = "0.1.0", ends = "0.3.0" },
    { opcode = "rmsnorm", version = 2, introduced = "0.2.0" },
]
"""


def norms(*params: Params) -> ModelPlans:
    """An encoder of nothing but norms."""
    b = Builder(Stage.ENCODE)
    x = b.input(DType.F32, Symbol.ROWS, 32)
    for each in params:
        x = b.op(each, [x], "gain")
    return model(encode=b.finish(x))


PLANS = {
    "version_1": ("0.1.0", norms(NormV1(1e-6), NormV1(1e-5, 1.0))),
    "version_2": ("0.2.0", norms(NormV2(1e-6), NormV2(1e-5, 1.0, groups=4))),
}
"""Golden file -> the release that wrote it, and what is in it."""


def write(directory: Path) -> None:
    for name, (release, plans) in PLANS.items():
        if not (directory / f"{name}.plan").exists():
            save(plans, directory / f"{name}.plan", RELEASES[release])


if __name__ == "__main__":
    write(Path(sys.argv[1]))
