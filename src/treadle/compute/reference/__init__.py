"""Plain NumPy f32 definitions of every op: slow, short, and what every other backend is tested against.

Functions take arrays and scalars, one row per leading index, and know neither plans nor pages.
"""

from treadle.compute.reference.activation import (
    gelu,
    gelu_tanh,
    identity,
    relu,
    relu2,
    sigmoid,
    silu,
    softcap,
    tanh,
)
from treadle.compute.reference.attention import (
    BLOCK_Q8_0,
    alibi_bias,
    attention,
    from_q8_0,
    gate_output,
    latent_attention,
    rope,
    to_q8_0,
    visible,
)
from treadle.compute.reference.linear import embedding, linear, linear_bf16, lm_head, residual_add, round_bf16
from treadle.compute.reference.mlp import clamped_gate, swiglu
from treadle.compute.reference.moe import Experts, GroupScore, Router, Score, moe, route
from treadle.compute.reference.norm import layernorm, layernorm_per_head, rmsnorm
from treadle.compute.reference.pool import mean_row, pool_head
from treadle.compute.reference.recurrent import (
    Conv,
    SelectiveInputs,
    causal_conv,
    delta_rule,
    gated_delta_net,
    head_scan,
    mamba,
    mamba2,
    selective_scan,
    shortconv,
    softplus,
)
from treadle.compute.reference.sampling import draw, log_probabilities, penalised, random_bits

__all__ = [
    "BLOCK_Q8_0",
    "Conv",
    "Experts",
    "GroupScore",
    "Router",
    "Score",
    "SelectiveInputs",
    "alibi_bias",
    "attention",
    "causal_conv",
    "clamped_gate",
    "delta_rule",
    "draw",
    "embedding",
    "from_q8_0",
    "gate_output",
    "gated_delta_net",
    "gelu",
    "gelu_tanh",
    "head_scan",
    "identity",
    "latent_attention",
    "layernorm",
    "layernorm_per_head",
    "linear",
    "linear_bf16",
    "lm_head",
    "log_probabilities",
    "mamba",
    "mamba2",
    "mean_row",
    "moe",
    "penalised",
    "pool_head",
    "random_bits",
    "relu",
    "relu2",
    "residual_add",
    "rmsnorm",
    "rope",
    "round_bf16",
    "route",
    "selective_scan",
    "shortconv",
    "sigmoid",
    "silu",
    "softcap",
    "softplus",
    "swiglu",
    "tanh",
    "to_q8_0",
    "visible",
]
