"""Plans for the release before: params put back into the versions that it reads, where they can be said in them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from treadle.errors import InvalidParamBlockABI, InvalidRequest
from treadle.plan.ir import CONTRACT_VERSION, CompiledPlan, ModelPlans, ParamBlock
from treadle.plan.param_struct import layout
from treadle.plan.upgrade import PUBLISHED, ParamVersions
from treadle.plan.versions import Window, parse_release


def versions_of(release: str, listed: Sequence[Window], versions: ParamVersions = PUBLISHED) -> ParamVersions:
    """What an earlier release reads of params, as far as the code at hand still knows it.

    Raises InvalidRequest where it reads another contract.
    """
    then = parse_release(release)
    read = {(w.subject, w.version) for w in listed if w.introduced <= then and (w.ends is None or then < w.ends)}
    if ("contract", CONTRACT_VERSION) not in read:
        raise InvalidRequest(f"release {release} does not read contract version {CONTRACT_VERSION}")
    layouts = {key: params for key, params in versions.layouts.items() if (key[0].name.lower(), key[1]) in read}
    upgrades = {key: step for key, step in versions.upgrades.items() if (key[0], key[1] + 1) in layouts}
    return ParamVersions(layouts, upgrades, {params: versions.ranges[params] for params in layouts.values()})


def downgrade_params(plans: ModelPlans, target: ParamVersions, versions: ParamVersions = PUBLISHED) -> ModelPlans:
    """The plans with every param block in the newest version that `target` reads.

    Raises InvalidParamBlockABI for params that mean something which that version cannot say.
    """

    def lower(compiled: CompiledPlan | None) -> CompiledPlan | None:
        if compiled is None:
            return None
        blocks = tuple(downgrade_block(block, target.newest(block.opcode), versions) for block in compiled.param_blocks)
        return msgspec.structs.replace(compiled, param_blocks=blocks)

    stages = ("vision_encode", "scatter", "prefill", "decode", "encode")
    return msgspec.structs.replace(plans, **{name: lower(getattr(plans, name)) for name in stages})


def downgrade_block(block: ParamBlock, version: int, versions: ParamVersions = PUBLISHED) -> ParamBlock:
    """The block of an older version whose upgrade is this one: its fields, where upgrading them gives all of this."""
    name = block.opcode.name.lower()
    while block.abi_version > version:
        older = versions.layouts.get((block.opcode, block.abi_version - 1))
        step = versions.upgrades.get((block.opcode, block.abi_version - 1))
        if older is None or step is None or version < 1:
            raise InvalidParamBlockABI(f"{name}: no version that the release reads is known here")
        params = versions.layouts[(block.opcode, block.abi_version)].unpack(block)
        kept = {field: getattr(params, field, None) for field, _ in layout(older)}
        lowered = older(**kept) if None not in kept.values() else None
        if lowered is None or step(lowered).pack() != block:
            raise InvalidParamBlockABI(f"{name}: params version {block.abi_version - 1} cannot say {params}")
        block = lowered.pack()
    return block
