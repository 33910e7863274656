"""What the rules look at: a compiled plan with its op specs and params looked up once, tolerant of broken plans.

A rule passes over whatever another rule refuses, so that each defect has one rule that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from math import prod
from typing import Final

import msgspec

from treadle.errors import InvalidParamBlockABI, InvalidPlan
from treadle.plan.ir import MAX_RANK, NO_WEIGHT, CompiledPlan, Instruction, ParamBlock, RegisterSpec, WeightBinding
from treadle.plan.ops import OPS, SYMBOLS, OpSpec
from treadle.plan.param_struct import Params
from treadle.plan.rules.values import relation_findings, value_findings
from treadle.plan.upgrade import PUBLISHED, ParamVersions

MAX_ELEMENTS: Final = 1 << 48
REGISTER_SYMBOLS: Final = frozenset(int(symbol) for symbol in SYMBOLS.values())


class Block:
    """A param block, read once for all instructions that share it."""

    def __init__(self, block: ParamBlock, versions: ParamVersions) -> None:
        self.opcode = block.opcode
        cls = versions.layouts.get((block.opcode, block.abi_version))
        try:
            self.params = None if cls is None else cls.unpack(block)
        except InvalidParamBlockABI:
            self.params = None
        self.values = () if self.params is None else tuple(value_findings(self.params, versions.ranges))
        """Fields out of range."""
        readable = self.params is not None and not self.values
        self.relations = tuple(relation_findings(self.params)) if self.params is not None and readable else ()
        """Fields that contradict one another."""
        self.sound = self.params if readable and not self.relations else None
        """The params, where nothing is wrong with them."""


class Op:
    """One instruction with what its opcode and param block say; None or empty where they are broken."""

    def __init__(self, index: int, instruction: Instruction, compiled: CompiledPlan, blocks: Sequence[Block]) -> None:
        self.index = index
        self.instruction = instruction
        self.compiled = compiled
        self.spec: OpSpec | None = OPS.get(instruction.opcode)
        block_id = instruction.param_block_id
        found = blocks[block_id] if block_id is not None and 0 <= block_id < len(blocks) else None
        self.block = found if found is not None and found.opcode == instruction.opcode else None

    @property
    def label(self) -> str:
        return f"instruction {self.index} ({self.spec.name if self.spec else f'opcode {int(self.instruction.opcode)}'})"

    @property
    def params(self) -> Params | None:
        """The params, where there is a readable block of this opcode."""
        return None if self.block is None else self.block.params

    @property
    def sound(self) -> Params | None:
        """The params, where their values are in range and fit one another."""
        return None if self.block is None else self.block.sound

    @cached_property
    def registers(self) -> tuple[tuple[str, tuple[str, ...], int, RegisterSpec], ...]:
        """(port, words, register, spec) of each operand that is present."""
        if self.spec is None:
            return ()
        specs = self.compiled.register_specs
        pairs = [*zip(self.spec.inputs, self.instruction.inputs, strict=False)]
        pairs += zip(self.spec.outputs, self.instruction.outputs, strict=False)
        return tuple((port.name, port.shape, r, specs[r]) for port, r in pairs if 0 <= r < len(specs))

    @cached_property
    def weights(self) -> tuple[tuple[str, tuple[str, ...], WeightBinding], ...]:
        """(slot, words, binding) of each weight that is present."""
        if self.spec is None:
            return ()
        bindings = self.compiled.weight_bindings
        pairs = zip(self.spec.weights, self.instruction.weights, strict=False)
        return tuple((slot.name, slot.shape, bindings[w]) for slot, w in pairs if 0 <= w < len(bindings))

    @cached_property
    def present(self) -> frozenset[str]:
        """Names of the weight slots that are filled."""
        if self.spec is None:
            return frozenset()
        pairs = zip(self.spec.weights, self.instruction.weights, strict=False)
        return frozenset(slot.name for slot, w in pairs if w != NO_WEIGHT)

    def sizes(self) -> dict[str, int]:
        """Sizes that the params give; a size of 0 belongs to a feature that is off and binds nothing."""
        return {} if self.sound is None else {word: size for word, size in self.sound.dims().items() if size}


class Subject:
    """One compiled plan under verification."""

    def __init__(self, compiled: CompiledPlan, versions: ParamVersions = PUBLISHED) -> None:
        self.compiled = compiled
        self.versions = versions
        self.plan = compiled.plan

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """Made when the first rule asks, behind the one that bounds their number."""
        instructions = self.plan.instructions
        blocks = tuple(Block(block, self.versions) for block in self.compiled.param_blocks)
        return tuple(Op(i, instruction, self.compiled, blocks) for i, instruction in enumerate(instructions))


Check = Callable[[Subject], Iterator[str]]


class Rule(msgspec.Struct, frozen=True):
    """A check that yields one message a finding; the first one is raised as `error`."""

    name: str
    error: type[InvalidPlan]
    check: Check
    of_stage: bool = False
    """Whether the check looks at the stage; all others find the same in a plan that two stages share."""


@lru_cache(maxsize=1024)
def plausible(shape: tuple[int, ...], symbols: frozenset[int] = frozenset()) -> bool:
    """Whether a shape has an accepted rank, and sizes that are positive, or symbols, and not too large together."""
    if not 1 <= len(shape) <= MAX_RANK or any(size <= 0 and size not in symbols for size in shape):
        return False
    return prod(size for size in shape if size > 0) <= MAX_ELEMENTS


def unify(sizes: dict[str, int], words: tuple[str, ...], shape: tuple[int, ...]) -> str | None:
    """Matches a shape against its words, learning sizes that are not known yet. Returns what differs, if anything."""
    if len(words) != len(shape):
        return f"has {len(shape)} axes, expected [{' '.join(words)}]"
    for word, size in zip(words, shape, strict=True):
        expected = SYMBOLS.get(word)
        known = int(expected) if expected is not None else sizes.setdefault(word, size) if size > 0 else None
        if known is None:
            return f"has a symbolic size where [{' '.join(words)}] needs a constant {word}"
        if known != size:
            return f"has {word} = {size_name(size)}, expected {size_name(known)}"
    return None


def size_name(size: int) -> str:
    return str(size) if size >= 0 else {int(v): k for k, v in SYMBOLS.items()}.get(size, str(size))


def clip(text: str) -> str:
    """A name as it may stand in a message."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
