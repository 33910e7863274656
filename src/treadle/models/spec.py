"""The spec language: an architecture as data, from which `compile.py` makes plans.

A program is a list of ops over named values ("x", "h", ...): an op reads values and writes one, and writing a name
again makes a new value. That is enough for pre-, post- and sandwich norms, parallel attention and MLP, scaled
residuals, and layers of different kinds. Shapes are not stated: they follow from the op table and the params.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from treadle.plan.ir import Container, DType, Generator, ModelFacts, Source, Stage, Transform
from treadle.plan.param_struct import Params

LAYER = "{layer}"
"""Stands in a weight's names for the number of the layer."""


class Names(msgspec.Struct, frozen=True):
    """Tensors of one container, and how the weight is cut out of them."""

    tensors: tuple[str, ...]
    transforms: tuple[Transform, ...] = ()


class WeightSpec(msgspec.Struct, frozen=True):
    """A weight: its own name, and where Hugging Face safetensors and GGUF keep it. All may hold `{layer}`.

    Equal names are one weight: an embedding table that serves as the head is one binding, packed once.
    With a `generator` the weight is computed, from the named tensor where the generator reads one.
    """

    name: str
    hf: Names | None = None
    gguf: Names | None = None
    generator: Generator | None = None

    def sources(self, layer: int) -> tuple[Source, ...]:
        """Both doors, with the layer's number filled in."""
        doors = ((Container.SAFETENSORS, self.hf), (Container.GGUF, self.gguf))
        return tuple(
            Source(container, tuple(numbered(tensor, layer) for tensor in names.tensors), names.transforms)
            for container, names in doors
            if names is not None
        )


def numbered(name: str, layer: int) -> str:
    return name.replace(LAYER, str(layer))


def weight(
    name: str,
    hf: str,
    gguf: str,
    gguf_transforms: tuple[Transform, ...] = (),
    hf_transforms: tuple[Transform, ...] = (),
) -> WeightSpec:
    """A weight that both containers keep in one tensor."""
    return WeightSpec(name, Names((hf,), hf_transforms), Names((gguf,), gguf_transforms))


class Op(msgspec.Struct, frozen=True):
    """One op; `params` says which. `weights` by slot; `sizes`: shape words that neither params nor inputs tell."""

    params: Params
    weights: Mapping[str, WeightSpec] = {}
    reads: tuple[str, ...] = ("x",)
    writes: str = "x"
    sizes: Mapping[str, int] = {}


class Input(msgspec.Struct, frozen=True):
    """A value that the caller writes before each step; shape as in `RegisterSpec`."""

    name: str
    dtype: DType
    shape: tuple[int, ...]


class Program(msgspec.Struct, frozen=True):
    """Ops for one or more stages. Layer i fills `{layer}` with i; prologue and epilogue name no layer."""

    stages: tuple[Stage, ...]
    inputs: tuple[Input, ...]
    prologue: tuple[Op, ...]
    layers: tuple[tuple[Op, ...], ...]
    epilogue: tuple[Op, ...]
    outputs: tuple[str, ...] = ("x",)


class Architecture(msgspec.Struct, frozen=True):
    """A model of one family at one size. `unused`: patterns (fnmatch) of tensors that checkpoints carry for nothing.

    `notes`: what a user should know of how the checkpoint was read; they become the plan's diagnostics.
    """

    facts: ModelFacts
    programs: tuple[Program, ...]
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
