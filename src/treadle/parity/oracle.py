"""The oracle: transformers' own model with seeded weights, in f32 with eager attention. Imports torch.

Weights are normal noise of a size that a tensor's name tells; larger than a trained model's, so that attention is far
from uniform and an error shows in the logits. They lie on a grid that f32, f16, bf16 and q8_0 all hold exactly: one run
of the oracle then serves every way in which the weights are stored, and what differs is arithmetic alone.
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from treadle.errors import InvalidRequest
from treadle.parity.outputs import encodes, types_of

F32 = NDArray[np.float32]
DTYPES: Final = {"f32": torch.float32, "bf16": torch.bfloat16}
BLOCK: Final = 32
"""Elements of a q8_0 block."""


def quiet() -> None:
    """Neither progress bars nor advice on stderr."""
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def seeded_model(class_name: str, config: Mapping[str, Any], seed: int) -> transformers.PreTrainedModel:
    """The transformers class on a config of these keyword arguments, evaluating. Raises InvalidRequest."""
    kind = _class(class_name)
    made = kind.config_class(**copy.deepcopy(dict(config)))
    model = kind._from_config(made, dtype=torch.float32, attn_implementation="eager")
    fill(model, seed)
    return cast(transformers.PreTrainedModel, model.eval())


def load(path: Path) -> transformers.PreTrainedModel:
    """The model of a checkpoint's directory, in f32. Raises InvalidRequest naming what transformers says."""
    (named,) = json.loads((path / "config.json").read_text()).get("architectures") or [""]
    kind: Any = _class(named) if encodes(named) else transformers.AutoModelForCausalLM
    try:
        model = kind.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InvalidRequest(f"{path}: transformers cannot open it: {error}") from None
    return cast(transformers.PreTrainedModel, model.eval())


def token_ids(path: Path, text: str) -> list[int] | None:
    """Ids of a text by the checkpoint's tokenizer.json; None without one."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return list(tokenizer.encode(text).ids)


def versions() -> dict[str, str]:
    return {"transformers": transformers.__version__, "torch": str(torch.__version__)}


def full_config(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of such a config, defaults written out. Raises InvalidRequest."""
    made = _class(class_name).config_class(**copy.deepcopy(dict(config)))
    written = json.loads(made.to_json_string(use_diff=False), object_hook=_number)
    return {**written, "architectures": [class_name]}


def _number(value: dict[str, Any]) -> Any:
    """transformers writes infinity as an object, which its configs do not take back."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def logits_of_config(
    class_name: str, config: Mapping[str, Any], seed: int, prompts: Sequence[Sequence[int]], save_to: Path | None = None
) -> list[F32]:
    """Logits of the seeded model of a config.json; `save_to`: its checkpoint is left there. Raises what transformers
    does."""
    model = seeded_model(class_name, config, seed)
    if save_to is not None:
        save(model, save_to)
    return logits(model, prompts)


def _class(name: str) -> Any:
    kind = getattr(transformers, name, None)
    if kind is None:
        raise InvalidRequest(f"transformers {transformers.__version__} has no class {name!r}")
    return kind


def fill(model: transformers.PreTrainedModel, seed: int, on_grid: bool = True) -> None:
    """Every floating tensor of the state dict by its name alone: the same name and shape give the same values.

    `on_grid` False leaves the noise as it is, for those to whom rounding matters.
    """
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode(), seed))
                values = _values(name, torch.randn(tensor.shape, generator=generator))
                tensor.copy_(_on_grid(values) if on_grid else values)
    model.tie_weights()


def _values(name: str, noise: torch.Tensor) -> torch.Tensor:
    """Norms near 1, biases 0.3, embeddings and heads 0.5, matrices 1.2 / sqrt(fan in), routers 4 / sqrt(fan in).

    The last expert that a row takes then weighs little: whether rounding makes it another one hardly matters.
    """
    if noise.ndim == 1 and name.endswith("bias"):
        return 0.3 * noise
    if "norm" in name or (noise.ndim == 1 and name.endswith("weight")):
        return 1 + 0.2 * noise
    if "embed" in name or "lm_head" in name:
        return 0.5 * noise
    size = 4.0 if name.endswith((".gate.weight", ".router.weight")) else 1.2
    return noise * size / noise.shape[-1] ** 0.5 if noise.ndim else noise


def _on_grid(values: torch.Tensor) -> torch.Tensor:
    """Multiples, at most 127, of a power of two; in every block of 32 along either of the last two axes one is +-127.

    So q8_0 finds that power as each block's scale. Tensors without blocks along either are rounded to bf16.
    """
    if values.ndim < 2 or all(size % BLOCK for size in values.shape[-2:]):
        return values.to(torch.bfloat16).float()
    step = 2.0 ** torch.round(torch.log2(2.5 * values.std() / 127))
    steps = torch.round(values / step).clamp(-127, 127)
    rows, cols = torch.arange(values.shape[-2])[:, None], torch.arange(values.shape[-1])
    peaks = torch.where(values < 0, -127.0, 127.0)
    return torch.where(rows % BLOCK == cols % BLOCK, peaks, steps) * step


def save(model: transformers.PreTrainedModel, directory: Path, weights: str = "f32") -> Path:
    """config.json and model.safetensors, stored as f32 or bf16. The model itself stays as it is."""
    state = {name: value.to(DTYPES[weights]) for name, value in model.state_dict().items()}
    model.save_pretrained(directory, state_dict=state)
    return directory


def logits(model: transformers.PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[F32]:
    """[positions, vocab] of each prompt, all of its positions at once; of an encoder its vector, [1, width]."""
    with torch.no_grad():
        if encodes(type(model).__name__):
            return [_vector(model, ids).float().numpy()[None] for ids in prompts]
        return [model(torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy() for ids in prompts]


def _vector(model: transformers.PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """The scores of a classification head, or the mean of the last rows."""
    inputs = {"input_ids": torch.tensor([list(ids)])}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.tensor([types_of(len(ids))])
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return _pooled(model.base_model(**inputs).last_hidden_state[0], model.name_or_path or "")
    scores: torch.Tensor = model(**inputs).logits[0]
    described = getattr(model.config, "sentence_transformers", None) or {}
    named = described.get("activation_fn", getattr(model.config, "sbert_ce_default_activation_function", None))
    if named is not None:
        return cast(torch.Tensor, getattr(torch.nn, named.rpartition(".")[2])()(scores))
    return torch.sigmoid(scores) if len(scores) == 1 else scores


def _pooled(rows: torch.Tensor, directory: str) -> torch.Tensor:
    """As modules.json in a checkpoint's directory says; the mean where there is none."""
    file = Path(directory) / "modules.json"
    if not directory or not file.is_file():
        return rows.mean(0)
    modules = {module["type"].rpartition(".")[2]: module["path"] for module in json.loads(file.read_text())}
    flags = json.loads((Path(directory) / modules["Pooling"] / "config.json").read_text())
    if flags.get("pooling_mode_cls_token") or flags.get("pooling_mode_lasttoken"):
        vector = rows[0 if flags.get("pooling_mode_cls_token") else -1]
    else:
        vector = rows.mean(0)
    return torch.nn.functional.normalize(vector, dim=0) if "Normalize" in modules else vector


def module_names(model: transformers.PreTrainedModel) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_modules())


def trace(
    model: transformers.PreTrainedModel, ids: Sequence[int], wanted: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], F32]:
    """(module, "input" or "output") -> the first tensor that it takes or gives for a prompt. The module "": logits."""
    found: dict[tuple[str, str], F32] = {}
    modules = dict(model.named_modules())

    def keep(at: tuple[str, str], value: Any) -> None:
        first = value[0] if isinstance(value, tuple | list) and value else value
        if isinstance(first, torch.Tensor) and at not in found:
            found[at] = first.detach().float().clone().numpy()

    def watch(at: tuple[str, str]) -> Any:
        if at[1] == "output":
            return modules[at[0]].register_forward_hook(lambda module, args, output: keep(at, output))
        return modules[at[0]].register_forward_pre_hook(
            lambda module, args, named: keep(at, args or named.get("hidden_states")), with_kwargs=True
        )

    handles = [watch(at) for at in wanted if at[0]]
    try:
        found["", "output"] = logits(model, [ids])[0]
    finally:
        for handle in handles:
            handle.remove()
    return found
