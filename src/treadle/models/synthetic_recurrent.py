"""Sizes of synthetic models with recurrent layers, and their tensors and metadata as GGUF names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

Dims = Mapping[str, tuple[int, ...]]
"""Tensor -> its shape, rows first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2Shape:
    """Sizes of a Mamba-2; its inner size is twice the hidden one."""

    layers: int
    hidden: int
    vocabulary: int = 50288
    head_dim: int = 64
    state: int = 128
    conv: int = 4

    def metadata(self) -> dict[str, object]:
        inner = 2 * self.hidden
        return {
            "context_length": 1 << 20,
            "embedding_length": self.hidden,
            "block_count": self.layers,
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "ssm.conv_kernel": self.conv,
            "ssm.inner_size": inner,
            "ssm.state_size": self.state,
            "ssm.time_step_rank": inner // self.head_dim,
            "ssm.group_count": 1,
            "vocab_size": self.vocabulary,
        }

    def matrices(self) -> Dims:
        """Those of the model's weight type."""
        inner = 2 * self.hidden
        rows = 2 * inner + 2 * self.state + inner // self.head_dim
        found = {"token_embd.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            found |= {
                f"blk.{layer}.ssm_in.weight": (rows, self.hidden),
                f"blk.{layer}.ssm_out.weight": (self.hidden, inner),
            }
        return found

    def floats(self) -> Dims:
        """Those that are f32 always."""
        inner, channels, heads = 2 * self.hidden, 2 * self.hidden + 2 * self.state, 2 * self.hidden // self.head_dim
        found: dict[str, tuple[int, ...]] = {"output_norm.weight": (self.hidden,)}
        for layer in range(self.layers):
            found |= {
                f"blk.{layer}.attn_norm.weight": (self.hidden,),
                f"blk.{layer}.ssm_conv1d.weight": (channels, self.conv),
                f"blk.{layer}.ssm_conv1d.bias": (channels,),
                f"blk.{layer}.ssm_dt.bias": (heads,),
                f"blk.{layer}.ssm_a": (heads, 1),
                f"blk.{layer}.ssm_d": (heads, 1),
                f"blk.{layer}.ssm_norm.weight": (1, inner),
            }
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Lfm2Shape:
    """Sizes of an LFM2. `attends`: the layers with attention in place of a convolution."""

    layers: int
    attends: tuple[int, ...]
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int = 65536
    conv: int = 3

    def metadata(self) -> dict[str, object]:
        return {
            "context_length": 128000,
            "embedding_length": self.hidden,
            "block_count": self.layers,
            "feed_forward_length": self.mlp,
            "attention.head_count": self.heads,
            "attention.head_count_kv": [self.kv_heads if i in self.attends else 0 for i in range(self.layers)],
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 1e6,
            "shortconv.l_cache": self.conv,
            "vocab_size": self.vocabulary,
        }

    def matrices(self) -> Dims:
        keys = self.kv_heads * self.hidden // self.heads
        found = {"token_embd.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            block = f"blk.{layer}"
            if layer in self.attends:
                found |= {
                    f"{block}.attn_q.weight": (self.hidden, self.hidden),
                    f"{block}.attn_k.weight": (keys, self.hidden),
                    f"{block}.attn_v.weight": (keys, self.hidden),
                    f"{block}.attn_output.weight": (self.hidden, self.hidden),
                }
            else:
                found |= {
                    f"{block}.shortconv.in_proj.weight": (3 * self.hidden, self.hidden),
                    f"{block}.shortconv.out_proj.weight": (self.hidden, self.hidden),
                }
            found |= {
                f"{block}.ffn_gate.weight": (self.mlp, self.hidden),
                f"{block}.ffn_up.weight": (self.mlp, self.hidden),
                f"{block}.ffn_down.weight": (self.hidden, self.mlp),
            }
        return found

    def floats(self) -> Dims:
        found: dict[str, tuple[int, ...]] = {"token_embd_norm.weight": (self.hidden,)}
        for layer in range(self.layers):
            block, head = f"blk.{layer}", (self.hidden // self.heads,)
            found |= {f"{block}.attn_norm.weight": (self.hidden,), f"{block}.ffn_norm.weight": (self.hidden,)}
            if layer in self.attends:
                found |= {f"{block}.attn_q_norm.weight": head, f"{block}.attn_k_norm.weight": head}
            else:
                found |= {f"{block}.shortconv.conv.weight": (self.hidden, self.conv)}
        return found


RecurrentShape = Mamba2Shape | Lfm2Shape
SHAPES: Final[Mapping[str, Mapping[str, RecurrentShape]]] = {
    "mamba2": {
        "tiny": Mamba2Shape(layers=2, hidden=256, vocabulary=512),
        "130m": Mamba2Shape(layers=24, hidden=768),
        "1.3b": Mamba2Shape(layers=48, hidden=2048),
    },
    "lfm2": {
        "tiny": Lfm2Shape(layers=3, attends=(1,), hidden=256, mlp=512, heads=4, kv_heads=2, vocabulary=512),
        "350m": Lfm2Shape(layers=16, attends=(2, 5, 8, 10, 12, 14), hidden=1024, mlp=4608, heads=16, kv_heads=8),
        "1.2b": Lfm2Shape(layers=16, attends=(2, 5, 8, 10, 12, 14), hidden=2048, mlp=8192, heads=32, kv_heads=8),
    },
}
"""Family -> name -> sizes, those of the published models."""


def tensors_of(shape: RecurrentShape, type_of: Callable[[str, int], str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (type, shape) of all tensors. `type_of(name, columns)`: of matrices."""
    found = {name: ("f32", dims) for name, dims in shape.floats().items()}
    return found | {name: (type_of(name, dims[1]), dims) for name, dims in shape.matrices().items()}
