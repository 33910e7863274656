"""Models without a file: a family, a size and a weight type make a checkpoint of random weights, for measuring speed.

"synthetic:llama:1b:q4_k" names one wherever a model is named. It has no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from treadle.errors import UnsupportedModel
from treadle.formats.synthetic import RANDOM_TYPES, SyntheticTensors
from treadle.formats.tensors import BLOCK_SIZES
from treadle.models import synthetic_recurrent as recurrent
from treadle.models.checkpoint import SYNTHETIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder's sizes. The rope is plain, whatever the real model's is: it costs the same."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    rope_theta: float
    tied: bool
    experts: int = 0
    """0: a plain MLP of `mlp` columns; else experts of as many each, of which a row takes `chosen`."""
    chosen: int = 0


SHAPES: Final[Mapping[str, Shape]] = {
    "tiny": Shape(
        layers=2, hidden=256, mlp=512, heads=4, kv_heads=2, head_dim=64, vocabulary=512,
        positions=8192, rope_theta=1e4, tied=True,
    ),
    "smollm2-135m": Shape(
        layers=30, hidden=576, mlp=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49152,
        positions=8192, rope_theta=1e5, tied=True,
    ),
    "gemma3-270m": Shape(
        layers=18, hidden=640, mlp=2048, heads=4, kv_heads=1, head_dim=256, vocabulary=262144,
        positions=32768, rope_theta=1e6, tied=True,
    ),
    "1b": Shape(
        layers=16, hidden=2048, mlp=8192, heads=32, kv_heads=8, head_dim=64, vocabulary=128256,
        positions=131072, rope_theta=5e5, tied=True,
    ),
    "3b": Shape(
        layers=28, hidden=3072, mlp=8192, heads=24, kv_heads=8, head_dim=128, vocabulary=128256,
        positions=131072, rope_theta=5e5, tied=True,
    ),
    "8b": Shape(
        layers=32, hidden=4096, mlp=14336, heads=32, kv_heads=8, head_dim=128, vocabulary=128256,
        positions=131072, rope_theta=5e5, tied=False,
    ),
}  # fmt: skip
"""1b, 3b: Llama 3.2; 8b: Llama 3.1. gemma3-270m: its sizes in a llama's program."""
EXPERT_SHAPES: Final[Mapping[str, Shape]] = {
    "tiny": Shape(
        layers=2, hidden=256, mlp=256, heads=4, kv_heads=2, head_dim=64, vocabulary=512,
        positions=8192, rope_theta=1e6, tied=True, experts=8, chosen=2,
    ),
    "small": Shape(
        layers=8, hidden=1024, mlp=512, heads=16, kv_heads=4, head_dim=64, vocabulary=32768,
        positions=40960, rope_theta=1e6, tied=True, experts=32, chosen=4,
    ),
    "30b-a3b": Shape(
        layers=48, hidden=2048, mlp=768, heads=32, kv_heads=4, head_dim=128, vocabulary=151936,
        positions=40960, rope_theta=1e6, tied=False, experts=128, chosen=8,
    ),
}  # fmt: skip
"""30b-a3b: Qwen3-30B-A3B; small: a quarter of its experts, fewer and narrower layers."""
DECODERS: Final = {"llama": SHAPES, "qwen3_moe": EXPERT_SHAPES}
"""Family -> its shapes."""
_ARCHITECTURES: Final = {"qwen3_moe": "qwen3moe"}
"""Of families whose GGUF files say another name."""


def _q4_k_m(name: str, layer: int, layers: int, cols: int) -> str:
    """llama.cpp's Q4_K_M: table, head, and of some layers values and down projection finer."""
    eighth = layers // 8
    more = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    fine = name in ("token_embd", "output") or (name in ("attn_v", "ffn_down", "ffn_down_exps") and more)
    if cols % BLOCK_SIZES["q4_k"][0]:
        return "q8_0" if fine else "q5_0"
    return "q6_k" if fine else "q4_k"


MIXES: Final[Mapping[str, Callable[[str, int, int, int], str]]] = {"q4_k_m": _q4_k_m}
"""Types by tensor: (name without layer and suffix, layer or -1, layers, columns) -> type."""


def synthetic_tensors(model: str) -> SyntheticTensors:
    """The tensors and metadata of "synthetic:FAMILY:SHAPE:TYPE".

    Raises UnsupportedModel naming what is not known and what is, InvalidWeights for rows that the type cannot hold.
    """
    family, shape_name, dtype = _parts(model)
    mix = MIXES.get(dtype)
    if family in recurrent.SHAPES:
        shape_ = recurrent.SHAPES[family][shape_name]
        chosen = recurrent.tensors_of(shape_, lambda name, cols: _mixed(mix, name, shape_.layers, cols, dtype))
        return SyntheticTensors(_general(family, f"{shape_name} {dtype}", shape_.metadata()), chosen)
    shape = DECODERS[family][shape_name]
    matrices, vectors = _tensors(shape)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {name: ("f32", (size,)) for name, size in vectors.items()}
    for name, dims in matrices.items():
        router = name.endswith(".ffn_gate_inp.weight")
        tensors[name] = ("f32" if router else _mixed(mix, name, shape.layers, dims[-1], dtype), dims)
    return SyntheticTensors(_metadata(_ARCHITECTURES.get(family, family), f"{shape_name} {dtype}", shape), tensors)


def _mixed(mix: Callable[[str, int, int, int], str] | None, name: str, layers: int, cols: int, dtype: str) -> str:
    """The type of a matrix: `dtype`, or what a mix gives it."""
    layer, base = (int(name.split(".")[1]), name.split(".")[2]) if name.startswith("blk.") else (-1, name[:-7])
    return mix(base, layer, layers, cols) if mix else dtype


def _parts(model: str) -> tuple[str, str, str]:
    parts = model.removeprefix(SYNTHETIC).split(":")
    if len(parts) != 3:
        raise UnsupportedModel(f"{model!r}: expected FAMILY:SHAPE:TYPE, as in llama:1b:q4_k")
    types = (*RANDOM_TYPES, *MIXES)
    shapes = {**DECODERS, **recurrent.SHAPES}
    known_parts = (shapes, shapes.get(parts[0], ()), types)
    for what, part, known in zip(("family", "shape", "type"), parts, known_parts, strict=True):
        if part not in known:
            raise UnsupportedModel(f"{model!r}: synthetic {what} {part!r} is not known; known: {', '.join(known)}")
    return parts[0], parts[1], parts[2]


def _metadata(family: str, name: str, shape: Shape) -> dict[str, object]:
    keys = {
        "context_length": shape.positions,
        "embedding_length": shape.hidden,
        "block_count": shape.layers,
        "feed_forward_length": shape.mlp,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": shape.rope_theta,
        "vocab_size": shape.vocabulary,
    }
    if shape.experts:
        of_experts = {"count": shape.experts, "used_count": shape.chosen, "feed_forward_length": shape.mlp}
        keys |= {f"expert_{key}": value for key, value in of_experts.items()}
    return _general(family, name, keys)


def _general(family: str, name: str, keys: Mapping[str, object]) -> dict[str, object]:
    general = {"general.architecture": family, "general.name": f"synthetic {family} {name}"}
    return general | {f"{family}.{key}": value for key, value in keys.items()}


def _tensors(shape: Shape) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Matrices [out, in] or [experts, out, in] and vectors, in the order of a file."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrices: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocabulary, shape.hidden)}
    vectors = {"output_norm.weight": shape.hidden}
    if not shape.tied:
        matrices["output.weight"] = (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        matrices |= {
            f"{block}.attn_q.weight": (queries, shape.hidden),
            f"{block}.attn_k.weight": (keys, shape.hidden),
            f"{block}.attn_v.weight": (keys, shape.hidden),
            f"{block}.attn_output.weight": (shape.hidden, queries),
        }
        kind, stack = ("_exps", (shape.experts,)) if shape.experts else ("", ())
        if shape.experts:
            matrices[f"{block}.ffn_gate_inp.weight"] = (shape.experts, shape.hidden)
            vectors |= {f"{block}.attn_{name}_norm.weight": shape.head_dim for name in "qk"}
        matrices |= {
            f"{block}.ffn_gate{kind}.weight": (*stack, shape.mlp, shape.hidden),
            f"{block}.ffn_up{kind}.weight": (*stack, shape.mlp, shape.hidden),
            f"{block}.ffn_down{kind}.weight": (*stack, shape.hidden, shape.mlp),
        }
        vectors |= {f"{block}.attn_norm.weight": shape.hidden, f"{block}.ffn_norm.weight": shape.hidden}
    return matrices, vectors
