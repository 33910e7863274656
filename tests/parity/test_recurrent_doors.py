"""Models with recurrent layers through both doors: one config, one plan, bit-identical logits."""

from __future__ import annotations

import numpy as np
import pytest
from tests import gguf_export_recurrent

from treadle.inference.llm import LLM
from treadle.models.checkpoint import open_checkpoint
from treadle.parity import oracle
from treadle.parity.matrix import read_matrix

ONE_DOOR = {
    ("falcon_mamba", "epsilons"),  # GGUF has one epsilon
    ("lfm2", "bias-width-4"),  # llama.cpp knows no biases in short convolutions
    ("lfm2_moe", "not-corrected"),  # the same, and GGUF always means normalised weights
    ("mamba", "biases-untied"),  # llama.cpp's activation is always silu
    ("mamba2", "biases-limits"),  # GGUF has no limits of dt
    ("granitemoehybrid", "groups-limits"),
    ("qwen3_next", "gated-attention"),  # GGUF always means normalised weights
    ("qwen3_next", "dense"),  # GGUF files have experts in every layer
}
CASES = [
    case
    for case in read_matrix().cases
    if case.family in ("lfm2", "lfm2_moe", "mamba", "falcon_mamba", "mamba2", "jamba", "granitemoehybrid", "qwen3_next")
    and (case.family, case.name) not in ONE_DOOR
]
IDS = list(range(3, 67))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.name}")
def test_doors_agree(case, tmp_path):
    # Falcon Mamba's GGUF files are those of a Mamba whose norms share one epsilon; where no layer attends they do not
    # tell how many heads of keys one would have.
    falcon = case.family == "falcon_mamba"
    alike = not falcon and case.name != "all-conv"
    changes = {"mixer_rms_eps": 1e-5} if falcon else {}
    model = oracle.seeded_model(case.class_name, {**case.config, **changes}, 1)
    paths = (oracle.save(model, tmp_path / "hf"), gguf_export_recurrent.export(model, tmp_path / "model.gguf"))
    configs, plans, found = [], [], []
    for path in paths:
        checkpoint = open_checkpoint(path)
        configs.append(checkpoint.config)
        plans.append(checkpoint.compile().prefill)
        checkpoint.close()
        with LLM(path, numerics="exact", max_num_seqs=1, max_num_logits=64) as llm:
            found.append(llm.logits(IDS))
    assert configs[0] == configs[1] or not alike
    assert plans[0] == plans[1]
    np.testing.assert_array_equal(found[0], found[1])
    expected = oracle.logits(model, [IDS])[0]
    assert np.abs(found[0] - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_gguf_cannot_say_is_in_the_matrix():
    known = {(case.family, case.name) for case in read_matrix().cases}
    assert {pair for pair in ONE_DOOR if pair[0] in {family for family, _ in known}} <= known
