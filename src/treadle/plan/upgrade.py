"""Lifting params of older accepted versions to the newest one, at load; hot loops never see a version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from treadle.errors import InvalidParamBlockABI
from treadle.plan.ir import CompiledPlan, ModelPlans, Opcode, ParamBlock
from treadle.plan.param_struct import Params
from treadle.plan.params import PARAMS
from treadle.plan.rules.values import RANGES, Range

Upgrade = Callable[[Params], Params]
"""Pure: the params of one version to those of the next."""

UPGRADES: Final[Mapping[tuple[Opcode, int], Upgrade]] = {}
"""By (opcode, version from). Contract v1 has first versions only. A version whose window has ended has no entry
here and none in PARAMS."""


class ParamVersions(msgspec.Struct, frozen=True):
    """What a release reads of params: the layout of each (opcode, version), the way from each older version to the
    next, and the values that each layout's fields may have."""

    layouts: Mapping[tuple[Opcode, int], type[Params]]
    upgrades: Mapping[tuple[Opcode, int], Upgrade]
    ranges: Mapping[type[Params], Mapping[str, Range]]

    def newest(self, opcode: int) -> int:
        """The version that the release executes and writes; 0 for an opcode without params."""
        return max((version for code, version in self.layouts if code == opcode), default=0)

    def known(self, opcode: int) -> list[int]:
        return sorted(version for code, version in self.layouts if code == opcode)


PUBLISHED: Final = ParamVersions(PARAMS, UPGRADES, RANGES)
"""What this release reads."""


def upgrade_block(block: ParamBlock, versions: ParamVersions = PUBLISHED) -> ParamBlock:
    """The block in its opcode's newest version. Raises InvalidParamBlockABI for versions that are not accepted."""
    target = versions.newest(block.opcode)
    while block.abi_version != target:
        layout = versions.layouts.get((block.opcode, block.abi_version))
        step = versions.upgrades.get((block.opcode, block.abi_version))
        if layout is None or step is None:
            raise InvalidParamBlockABI(
                f"{Opcode(block.opcode).name.lower()}: params version {block.abi_version} is not accepted; "
                f"this release reads {versions.known(block.opcode)}; compile the plan with this release"
            )
        lifted = step(layout.unpack(block)).pack()
        if (lifted.opcode, lifted.abi_version) != (block.opcode, block.abi_version + 1):
            raise InvalidParamBlockABI(
                f"{Opcode(block.opcode).name.lower()}: the upgrade from version {block.abi_version} "
                f"gives version {lifted.abi_version} of opcode {lifted.opcode}"
            )
        block = lifted
    return block


def upgrade_params(plans: ModelPlans, versions: ParamVersions = PUBLISHED) -> ModelPlans:
    """The plans with every param block in its newest version; the same object where nothing is older."""

    def lift(compiled: CompiledPlan | None) -> CompiledPlan | None:
        if compiled is None or all(b.abi_version == versions.newest(b.opcode) for b in compiled.param_blocks):
            return compiled
        blocks = tuple(upgrade_block(block, versions) for block in compiled.param_blocks)
        return msgspec.structs.replace(compiled, param_blocks=blocks)

    lifted = {name: lift(getattr(plans, name)) for name in ("vision_encode", "scatter", "prefill", "decode", "encode")}
    if all(lifted[name] is getattr(plans, name) for name in lifted):
        return plans
    return msgspec.structs.replace(plans, **lifted)
