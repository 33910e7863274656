"""Lifting params of older accepted versions to the newest one, at load; hot loops never see a version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from treadle.errors import InvalidParamBlockABI
from treadle.plan.ir import CompiledPlan, ModelPlans, Opcode, ParamBlock
from treadle.plan.param_struct import Params
from treadle.plan.params import PARAMS

Upgrade = Callable[[Params], Params]
"""Pure: the params of one version to those of the next."""

UPGRADES: Final[Mapping[tuple[Opcode, int], Upgrade]] = {}
"""By (opcode, version from). Contract v1 has first versions only. A version whose window has ended has no entry
here and none in PARAMS."""


def newest(opcode: Opcode, layouts: Mapping[tuple[Opcode, int], type[Params]] = PARAMS) -> int:
    """The version that this release executes; 0 for an opcode without params."""
    return max((version for code, version in layouts if code == opcode), default=0)


def upgrade_block(
    block: ParamBlock,
    layouts: Mapping[tuple[Opcode, int], type[Params]] = PARAMS,
    upgrades: Mapping[tuple[Opcode, int], Upgrade] = UPGRADES,
) -> ParamBlock:
    """The block in its opcode's newest version. Raises InvalidParamBlockABI for versions that are not accepted."""
    target = newest(block.opcode, layouts)
    while block.abi_version != target:
        layout = layouts.get((block.opcode, block.abi_version))
        step = upgrades.get((block.opcode, block.abi_version))
        if layout is None or step is None:
            known = sorted(version for code, version in layouts if code == block.opcode)
            raise InvalidParamBlockABI(
                f"{Opcode(block.opcode).name.lower()}: params version {block.abi_version} is not accepted; "
                f"this release reads {known}"
            )
        lifted = step(layout.unpack(block)).pack()
        if (lifted.opcode, lifted.abi_version) != (block.opcode, block.abi_version + 1):
            raise InvalidParamBlockABI(
                f"{Opcode(block.opcode).name.lower()}: the upgrade from version {block.abi_version} "
                f"gives version {lifted.abi_version} of opcode {lifted.opcode}"
            )
        block = lifted
    return block


def upgrade_params(
    plans: ModelPlans,
    layouts: Mapping[tuple[Opcode, int], type[Params]] = PARAMS,
    upgrades: Mapping[tuple[Opcode, int], Upgrade] = UPGRADES,
) -> ModelPlans:
    """The plans with every param block in its newest version; the same object where nothing is older."""

    def lift(compiled: CompiledPlan | None) -> CompiledPlan | None:
        if compiled is None or all(b.abi_version == newest(b.opcode, layouts) for b in compiled.param_blocks):
            return compiled
        blocks = tuple(upgrade_block(block, layouts, upgrades) for block in compiled.param_blocks)
        return msgspec.structs.replace(compiled, param_blocks=blocks)

    lifted = {name: lift(getattr(plans, name)) for name in ("vision_encode", "scatter", "prefill", "decode", "encode")}
    if all(lifted[name] is getattr(plans, name) for name in lifted):
        return plans
    return msgspec.structs.replace(plans, **lifted)
