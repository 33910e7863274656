"""RoBERTa and XLM-RoBERTa: BERT's layers, positions counted from behind the padding token's id.

Liu et al. 2019, arXiv:1907.11692; Conneau et al. 2019, arXiv:1911.02116. Reference: transformers' modeling_roberta.py
and modeling_xlm_roberta.py.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from treadle.models.bert_layers import BertLikeConfig, bert
from treadle.models.config import Keys, declare
from treadle.models.encoder import head_weights, prefix_reader
from treadle.models.registry import Family
from treadle.models.spec import Architecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobertaConfig(BertLikeConfig):
    MODEL_TYPE: ClassVar[str] = "roberta"
    ARCHITECTURES: ClassVar[tuple[str, ...]] = tuple(
        f"{name}{kind}"
        for name in ("Roberta", "XLMRoberta")
        for kind in ("Model", "ForMaskedLM", "ForSequenceClassification")
    )

    prefix: str = declare(reader=prefix_reader("roberta.", "RobertaModel", "XLMRobertaModel"))
    pad_token_id: int = declare(1, bounds=(0, 1 << 24))

    def check(self, keys: Keys) -> None:
        super().check(keys)
        if self.pad_token_id + 1 >= self.max_position_embeddings:
            keys.refuse("pad_token_id", self.pad_token_id, f"less than {self.max_position_embeddings - 1} positions")


def architecture(config: RobertaConfig) -> Architecture:
    head = head_weights("classifier.dense", "classifier.out_proj")
    unused = () if config.head.labels else ("lm_head.*", f"{config.prefix}pooler.*")
    return bert(config, config.prefix, head, unused, config.pad_token_id + 1)


FAMILY = Family(RobertaConfig, architecture)
