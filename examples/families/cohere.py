"""Cohere's Command R, as a family file of one's own: `treadle run FOLDER --family-file examples/families/cohere.py`.

One LayerNorm without bias before attention and MLP side by side, interleaved rope, scaled logits of a tied head.
Reference: transformers' modeling_cohere.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import msgspec

from treadle.models import blocks
from treadle.models.config import Keys, declare
from treadle.models.decoder import DecoderConfig
from treadle.models.registry import Family
from treadle.models.spec import Architecture, Input, Op, Program, weight
from treadle.plan.ir import DType, Stage, Symbol
from treadle.plan.params import LayerNormParams, RopeStyle


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohereConfig(DecoderConfig):
    MODEL_TYPE: ClassVar[str] = "cohere"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("CohereForCausalLM",)

    tie_word_embeddings: bool = declare(True)
    rms_norm_eps: float = declare(1e-5, hf="layer_norm_eps", bounds=(0.0, 1.0))
    logit_scale: float = declare(0.0625, bounds=(0.0, 1e3))
    attention_bias: bool = declare(False)
    use_qk_norm: bool = declare(False)

    def check(self, keys: Keys) -> None:
        super().check(keys)
        if self.use_qk_norm:
            keys.refuse("use_qk_norm", True, "false")


def layernorm(config: CohereConfig, name: str, tensor: str, writes: str = "h") -> Op:
    gain = weight(name, f"model.{tensor}.weight", f"unused.{tensor}")
    return Op(LayerNormParams(config.rms_norm_eps), {"gain": gain}, writes=writes)


def architecture(config: CohereConfig) -> Architecture:
    params = msgspec.structs.replace(config.attention_params(), rope_style=RopeStyle.INTERLEAVED)
    attention = blocks.attention(params, config.rope, biases=blocks.BIASES if config.attention_bias else ())
    layer = (
        layernorm(config, "layers.{layer}.norm", "layers.{layer}.input_layernorm", writes="normed"),
        msgspec.structs.replace(attention, reads=("normed",)),
        blocks.residual(),
        msgspec.structs.replace(blocks.mlp(config.intermediate_size, config.hidden_act), reads=("normed",)),
        blocks.residual(),
    )
    table = weight("embedding.table", "model.embed_tokens.weight", "token_embd.weight")
    head = table if config.tie_word_embeddings else weight("lm_head.weight", "lm_head.weight", "output.weight")
    program = Program(
        stages=(Stage.PREFILL, Stage.DECODE),
        inputs=(Input("ids", DType.I32, (Symbol.ROWS,)),),
        prologue=(blocks.embedding(config.vocab_size, config.hidden_size, table),),
        layers=(layer,) * config.num_hidden_layers,
        epilogue=(
            layernorm(config, "final_norm", "norm"),
            blocks.lm_head(config.vocab_size, head, scale=config.logit_scale),
        ),
        outputs=("logits",),
    )
    return Architecture(config.facts(), (program,), ("lm_head.weight",) if config.tie_word_embeddings else ())


FAMILY = Family(CohereConfig, architecture)
