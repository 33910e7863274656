"""Which tensors llama.cpp takes in a file of an architecture, and which it wants: it refuses files that differ, or
leaves a bias out of its sums.

Found out by giving llama.cpp (llama-cpp-python 0.3.36) files with one kind of tensor more or less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from treadle.errors import UnsupportedModel
from treadle.formats.tensors import TensorInfo

__all__ = ["check_loadable"]

OUT: Final = frozenset({"attn_output"})
MLP: Final = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
PLAIN_MLP: Final = frozenset({"ffn_up", "ffn_down"})


class Loader(NamedTuple):
    """Of an architecture."""

    takes: frozenset[str] = frozenset()
    """Matrices of a layer that may have a bias, beside those of queries, keys and values, which always may."""
    wants: frozenset[str] = frozenset()
    """Those that must have one."""
    tied: bool = True
    """Whether the head may be the embedding table."""
    untied: bool = True
    whole_key_norm: bool = False
    """Whether the norm of keys must be as wide as the model: no fewer heads for keys than for queries."""


LOADERS: Final[Mapping[str, Loader]] = {
    "gemma": Loader(untied=False),
    "gemma2": Loader(untied=False),
    "granite": Loader(takes=OUT | MLP),
    "granitemoe": Loader(takes=OUT),
    "llama": Loader(takes=OUT | MLP),
    "olmo2": Loader(tied=False),
    "olmoe": Loader(tied=False, whole_key_norm=True),
    "phi2": Loader(takes=OUT | PLAIN_MLP, wants=OUT | PLAIN_MLP, tied=False),
    "stablelm": Loader(tied=False),
    "starcoder2": Loader(takes=OUT | PLAIN_MLP, wants=OUT | PLAIN_MLP),
}
"""The others take what a Loader says by itself."""


def check_loadable(architecture: str, tensors: Mapping[str, TensorInfo]) -> None:
    """Raises UnsupportedModel naming a tensor that llama.cpp would refuse, not find, or not use. `tensors`: by name."""
    loader = LOADERS.get(architecture, Loader())

    def refuse(name: str, what: str) -> UnsupportedModel:
        return UnsupportedModel(f"tensor {name}: llama.cpp's architecture {architecture!r} {what}")

    for name, info in tensors.items():
        stem, _, kind = name.rpartition(".")
        matrix = stem.rpartition(".")[2]
        if kind == "bias" and matrix in (OUT | MLP) - loader.takes:
            raise refuse(name, "has no such bias")
        if matrix in loader.wants and f"{stem}.bias" not in tensors:
            raise refuse(f"{stem}.bias", "wants this bias, which the model has not")
        if matrix == "attn_k_norm" and loader.whole_key_norm and info.shape[-1] != _width(tensors):
            raise refuse(name, f"wants {_width(tensors)} values, as many as the model is wide, found {info.shape[-1]}")
    if "output.weight" in tensors and not loader.untied:
        raise refuse("output.weight", "has no head beside the embedding table (tie_word_embeddings)")
    if "output.weight" not in tensors and not loader.tied:
        raise refuse("output.weight", "wants a head beside the embedding table (tie_word_embeddings)")


def _width(tensors: Mapping[str, TensorInfo]) -> int:
    return tensors["token_embd.weight"].shape[-1]
