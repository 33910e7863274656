"""BERT: encoders for embeddings (MiniLM, BGE, GTE, E5, ...) and rerankers with a classification head.

Devlin et al. 2018, arXiv:1810.04805. Reference: transformers' modeling_bert.py. GGUF files of RoBERTa say "bert" too,
with the position table cut so that row 0 is position 0.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models.bert_layers import BertLikeConfig, bert
from treadle.models.config import declare
from treadle.models.encoder import head_weights, prefix_reader
from treadle.models.registry import Family
from treadle.models.spec import Architecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(BertLikeConfig):
    MODEL_TYPE: ClassVar[str] = "bert"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = (
        "BertModel",
        "BertForMaskedLM",
        "BertForPreTraining",
        "BertForSequenceClassification",
    )
    GGUF_ARCHITECTURE: ClassVar[str | None] = "bert"

    prefix: str = declare(reader=prefix_reader("bert.", "BertModel"))


def architecture(config: BertConfig) -> Architecture:
    pooler = f"{config.prefix}pooler.dense"
    unused = () if config.head.labels else (f"{pooler}.*", "cls.*")
    return bert(config, config.prefix, head_weights(pooler, "classifier"), unused)


FAMILY = Family(BertConfig, architecture)
