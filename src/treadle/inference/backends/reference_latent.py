"""The reference backend's adapter of multi-head latent attention."""

from __future__ import annotations

from typing import cast

import numpy as np

from treadle.compute import reference as ops
from treadle.inference.backends.base import F32
from treadle.inference.backends.reference_bound import Bound, Step
from treadle.inference.backends.reference_pages import with_past
from treadle.plan.params import MLAParams, RopeStyle


def mla_attention(op: Bound, step: Step) -> F32:
    """Projections of all rows, then each slot's rows over that slot's latents."""
    params, w, x = cast(MLAParams, op.params), op.weights, step.input(op)
    if params.q_lora_rank:
        low = ops.linear(x, cast(F32, w["q_a"]), w["q_a_bias"])
        q = ops.linear(ops.rmsnorm(low, w["q_a_norm"], params.norm_eps), cast(F32, w["q_b"]))
    else:
        q = ops.linear(x, cast(F32, w["q"]))
    q = q.reshape(len(x), params.num_heads, -1)
    compressed = ops.linear(x, cast(F32, w["kv_a"]), w["kv_a_bias"])
    latents = ops.rmsnorm(compressed[:, : params.kv_lora_rank], w["kv_a_norm"], params.norm_eps)
    turn = (cast(F32, w["rope_inv_freq"]), params.rope_style == RopeStyle.INTERLEAVED, params.rope_scale)
    q_rope = ops.rope(q[..., params.nope_dim :], step.positions, *turn)
    k_rope = ops.rope(compressed[:, None, params.kv_lora_rank :], step.positions, *turn)[:, 0]
    mixed = np.empty((len(x), params.num_heads, params.v_head_dim), np.float32)
    start = 0
    for slot, count in enumerate(step.context.query_lens.tolist()):
        rows = slice(start, start + count)
        past_latents, past_rope = with_past(op, step, slot, params.kv_dtype, (latents[rows], k_rope[rows]))
        mixed[rows] = ops.latent_attention(
            q[rows, :, : params.nope_dim],
            q_rope[rows],
            past_latents,
            past_rope,
            cast(F32, w["kv_b"]),
            step.positions[rows],
            np.arange(len(past_latents), dtype=np.int32),
            params.scale,
            bool(params.causal),
        )
        start += count
    return ops.linear(mixed.reshape(len(x), -1), cast(F32, w["o"]), w["o_bias"])
