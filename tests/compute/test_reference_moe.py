"""The mixture of experts against the blocks of transformers, and what they leave open against loops."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.compute.test_reference_ops import close, normal, tensor
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.granitemoe.configuration_granitemoe import GraniteMoeConfig
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeMoE
from transformers.models.jamba.configuration_jamba import JambaConfig
from transformers.models.jamba.modeling_jamba import JambaSparseMoeBlock
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen2_moe.configuration_qwen2_moe import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from treadle.compute import reference as ops

HIDDEN, INNER, EXPERTS, ROWS = 24, 20, 8, 11
SIZES = {"hidden_size": HIDDEN, "num_experts_per_tok": 3}
LOCAL = {"num_local_experts": EXPERTS, "intermediate_size": INNER}
COUNTED = {"num_experts": EXPERTS, "moe_intermediate_size": INNER}
DEEPSEEK = {"n_routed_experts": EXPERTS, "moe_intermediate_size": INNER, "n_shared_experts": 2, "n_group": 4}
Router = ops.Router


def seeded(block: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in (*block.named_parameters(), *block.named_buffers()):
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise * (0.3 if "bias" in name else 1.5 / value.shape[-1] ** 0.5))
    return block.eval()


def arrays(block: torch.nn.Module) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in block.state_dict().items()}


def experts_of(w: dict[str, np.ndarray]) -> ops.Experts:
    gate, up = np.split(w["experts.gate_up_proj"], 2, axis=1)
    return ops.Experts(gate=gate, up=up, down=w["experts.down_proj"])


def shared_of(w: dict[str, np.ndarray], name: str) -> ops.Experts:
    return ops.Experts(**{part: w[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down")})


def expected(block: torch.nn.Module, x: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return block(tensor(x)[None])[0]


@pytest.mark.parametrize(
    ("block", "name", "router"),
    [
        (
            MixtralSparseMoeBlock(MixtralConfig(**SIZES, **LOCAL)),
            "gate",
            Router(experts_per_row=3, normalise=True),
        ),
        (
            GraniteMoeMoE(GraniteMoeConfig(**SIZES, **LOCAL)),
            "router",
            Router(experts_per_row=3, score="topk_then_softmax"),
        ),
        (
            JambaSparseMoeBlock(JambaConfig(**SIZES, num_experts=EXPERTS, intermediate_size=INNER)),
            "router",
            Router(experts_per_row=3),
        ),
    ],
    ids=["mixtral", "granitemoe", "jamba"],
)
def test_routers_of_transformers(block, name, router):
    w, x = arrays(seeded(block)), normal(1, ROWS, HIDDEN)
    found = ops.moe(x, x @ w[f"{name}.weight"].T, router, experts_of(w))
    close(found, expected(block, x).reshape(ROWS, -1), atol=1e-5)


@pytest.mark.parametrize("normalise", [False, True])
def test_shared_experts_with_a_gate(normalise):
    config = Qwen2MoeConfig(**SIZES, **COUNTED, shared_expert_intermediate_size=36, norm_topk_prob=normalise)
    block = seeded(Qwen2MoeSparseMoeBlock(config))
    w, x = arrays(block), normal(2, ROWS, HIDDEN)
    router = Router(experts_per_row=3, normalise=normalise)
    shared = shared_of(w, "shared_expert")
    logits = x @ w["gate.weight"].T
    found = ops.moe(x, logits, router, experts_of(w), None, shared, w["shared_expert_gate.weight"])
    close(found, expected(block, x).reshape(ROWS, -1), atol=1e-5)


@pytest.mark.parametrize("groups", [False, True])
def test_group_limited_by_the_best_expert(groups):
    method = {"topk_method": "group_limited_greedy" if groups else "greedy", "topk_group": 2}
    config = DeepseekV2Config(num_attention_heads=4, routed_scaling_factor=1.7, **SIZES, **DEEPSEEK, **method)
    block = seeded(DeepseekV2Moe(config))
    w, x = arrays(block), normal(3, ROWS, HIDDEN)
    router = Router(experts_per_row=3, scale=1.7, groups=4 if groups else 1, top_groups=2 if groups else 1)
    found = ops.moe(x, x @ w["gate.weight"].T, router, experts_of(w), None, shared_of(w, "shared_experts"))
    close(found, expected(block, x).reshape(ROWS, -1), atol=1e-5)


@pytest.mark.parametrize("normalise", [False, True])
def test_sigmoid_with_correction_limited_by_the_two_best(normalise):
    config = DeepseekV3Config(**SIZES, **DEEPSEEK, topk_group=2, norm_topk_prob=normalise, routed_scaling_factor=2.5)
    block = seeded(DeepseekV3MoE(config))
    w, x = arrays(block), normal(4, ROWS, HIDDEN)
    router = Router(
        experts_per_row=3,
        score="sigmoid",
        normalise=normalise,
        eps=1e-20,
        scale=2.5,
        groups=4,
        top_groups=2,
        group_score="sum_top2",
    )
    correction = w["gate.e_score_correction_bias"]
    assert np.abs(correction).max() > 0.1
    shared = shared_of(w, "shared_experts")
    found = ops.moe(x, x @ w["gate.weight"].T, router, experts_of(w), correction, shared)
    close(found, expected(block, x).reshape(ROWS, -1), atol=1e-5)


def test_clamped_experts_with_biases():
    block = seeded(GptOssMLP(GptOssConfig(**SIZES, **LOCAL, swiglu_limit=0.8, swiglu_alpha=1.5)))
    w, x = arrays(block), normal(5, ROWS, HIDDEN)
    both, bias = w["experts.gate_up_proj"], w["experts.gate_up_proj_bias"]
    experts = ops.Experts(
        gate=both[..., 0::2].swapaxes(1, 2),
        up=both[..., 1::2].swapaxes(1, 2),
        down=w["experts.down_proj"].swapaxes(1, 2),
        gate_bias=bias[:, 0::2],
        up_bias=bias[:, 1::2],
        down_bias=w["experts.down_proj_bias"],
    )
    router = Router(experts_per_row=3, score="topk_then_softmax")
    logits = x @ w["router.weight"].T + w["router.bias"]
    found = ops.moe(x, logits, router, experts, clamp=(1.5, 0.8))
    with torch.no_grad():
        output, _ = block(tensor(x)[None])
    close(found, output.reshape(ROWS, -1), atol=1e-5)


def test_experts_without_a_gate_are_plain():
    x, up, down = normal(6, ROWS, HIDDEN), normal(7, 4, INNER, HIDDEN), normal(8, 4, HIDDEN, INNER)
    logits = normal(9, ROWS, 4)
    experts = ops.Experts(gate=None, up=up, down=down)
    found = ops.moe(x, logits, Router(experts_per_row=1), experts, activation=ops.relu2)
    for row in range(ROWS):
        e = int(logits[row].argmax())
        weight = np.exp(logits[row, e]) / np.exp(logits[row]).sum()
        close(found[row], weight * (np.square(np.maximum(x[row] @ up[e].T, 0)) @ down[e].T), rtol=1e-4, atol=1e-4)


def test_of_equals_the_first_is_chosen():
    logits = np.array([[1, 3, 3, 2, 3, 3]], np.float32)
    router = Router(experts_per_row=2)
    experts, weights = ops.route(logits, router)
    assert experts.tolist() == [[1, 2]]
    close(weights[0, 0], weights[0, 1])
    grouped = dataclasses.replace(router, groups=3, top_groups=1)  # the first two are as good
    assert ops.route(logits, grouped)[0].tolist() == [[0, 1]]
    summed = dataclasses.replace(grouped, group_score="sum_top2")
    assert ops.route(logits, summed)[0].tolist() == [[4, 5]]


def test_a_correction_chooses_and_does_not_weigh():
    logits = np.array([[0.0, 1.0, 2.0]], np.float32)
    router = Router(experts_per_row=1, score="sigmoid", normalise=True)
    experts, weights = ops.route(logits, router, np.array([9, 0, 0], np.float32))
    assert experts.tolist() == [[0]]
    assert weights.tolist() == [[1.0]]
