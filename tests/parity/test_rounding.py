"""Numerics bf16 round what they say they round: beside torch in f32 with the same inputs rounded to bf16."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from treadle.parity import oracle
from treadle.parity.compare import noise
from treadle.parity.matrix import read_matrix
from treadle.parity.run import Setting, matrix_subject, run_subject

MATRIX = read_matrix()
SETTING = Setting("cpu", "bf16", "q8_0")
PRODUCTS = {"linear", "grouped_mm", "_grouped_mm", "addmm"}
OF_ATTENTION = {"matmul", "__matmul__"}


class Bf16Products(TorchFunctionMode):
    """Rounds both sides of every product with a matrix of weights, and of attention's; sums stay f32.

    Scans of recurrences also multiply tensors and are f32: hence attention's products only inside of its modules.
    """

    def __init__(self, model):
        super().__init__()
        self._within = 0
        for module in model.modules():
            if "Attention" in type(module).__name__:
                module.register_forward_pre_hook(lambda *arguments: self._step(1))
                module.register_forward_hook(lambda *arguments: self._step(-1))

    def _step(self, change):
        self._within += change

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in PRODUCTS or (name in OF_ATTENTION and self._within):
            args = tuple(_rounded(value) for value in args)
        return function(*args, **(kwargs or {}))


def _rounded(value):
    return value.to(torch.bfloat16).float() if torch.is_tensor(value) and value.dtype == torch.float32 else value


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "gqa"),
        ("gemma3_text", "windows"),
        ("deepseek_v2", "dense"),
        ("mixtral", "all"),
        ("mamba2", "plain"),
        ("lfm2", "hybrid"),
        ("modernbert", "windows"),
    ],
)
def test_noise_is_that_of_rounded_products(family, name, tmp_path):
    (case,) = MATRIX.select(family, name)
    subject = matrix_subject(case, MATRIX.defaults, tmp_path)
    report = run_subject(subject, MATRIX.defaults, SETTING, threads=1)
    with Bf16Products(subject.model):
        rounded = oracle.logits(subject.model, subject.prompts)
    assert report.noise == pytest.approx(noise(rounded, subject.expected), rel=0.2)
