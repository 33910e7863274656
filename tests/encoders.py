"""Tiny encoders of every family with seeded weights, their oracle, and a WordPiece tokenizer; saved as checkpoints."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

VOCAB = 320
BASE: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
}
MODERN: Mapping[str, Any] = {
    **BASE,
    "local_attention": 16,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "cls_token_id": 0,
    "sep_token_id": 2,
}
PLAIN_SCORE = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"}}
ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 900.0},
}
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bert": ("BertModel", BASE),
    "bert-masked-lm": ("BertForMaskedLM", BASE),
    "bert-one-type": ("BertModel", {**BASE, "type_vocab_size": 1, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "bert-reranker": ("BertForSequenceClassification", {**BASE, "num_labels": 1}),
    "bert-plain-score": ("BertForSequenceClassification", {**BASE, "num_labels": 1, **PLAIN_SCORE}),
    "bert-labels": ("BertForSequenceClassification", {**BASE, "num_labels": 3}),
    "roberta": ("RobertaModel", BASE),
    "roberta-padding": ("RobertaModel", {**BASE, "pad_token_id": 4}),
    "roberta-reranker": ("RobertaForSequenceClassification", {**BASE, "num_labels": 1}),
    "xlm-roberta-reranker": ("XLMRobertaForSequenceClassification", {**BASE, "num_labels": 1, "type_vocab_size": 1}),
    "modernbert": ("ModernBertModel", MODERN),
    "modernbert-masked-lm": ("ModernBertForMaskedLM", MODERN),
    "modernbert-biases": ("ModernBertModel", {**MODERN, "norm_bias": True, "attention_bias": True, "mlp_bias": True}),
    "modernbert-layers": (
        "ModernBertModel",
        {
            **MODERN,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": ROPES,
        },
    ),
    "modernbert-reranker": ("ModernBertForSequenceClassification", {**MODERN, "num_labels": 1}),
    "modernbert-labels": (
        "ModernBertForSequenceClassification",
        {
            **MODERN,
            "num_labels": 4,
            "classifier_pooling": "mean",
            "classifier_bias": True,
            "norm_bias": True,
            "classifier_activation": "silu",
        },
    ),
}
"""name -> (transformers' class, its config)."""


def model(name: str) -> transformers.PreTrainedModel:
    """The seeded model in f32, evaluating; weights as in `tiny.model`."""
    kind, config = CASES[name]
    cls = getattr(transformers, kind)
    found = cls._from_config(cls.config_class(**config), dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for key, tensor in found.named_parameters():
            noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
            if key.endswith("bias"):
                tensor.copy_(0.3 * noise)
            elif tensor.ndim == 1:
                tensor.copy_(1 + 0.2 * noise)
            else:
                tensor.copy_(noise * (0.5 if "embed" in key else 1.2 / tensor.shape[-1] ** 0.5))
    return found.eval()


def vectors(
    name: str, found: transformers.PreTrainedModel, ids: Sequence[list[int]], types: Sequence[Any]
) -> np.ndarray:
    """Scores as transformers and CrossEncoder give them, or the mean of the rows, one sequence at a time."""
    rows = []
    with torch.no_grad():
        for tokens, kinds in zip(ids, types, strict=True):
            inputs = {"input_ids": torch.tensor([tokens])}
            if kinds is not None:
                inputs["token_type_ids"] = torch.tensor([kinds])
            if "Classification" not in type(found).__name__:
                rows.append(found.base_model(**inputs).last_hidden_state[0].mean(0))
                continue
            scores = found(**inputs).logits[0]
            rows.append(torch.sigmoid(scores) if len(scores) == 1 and name != "bert-plain-score" else scores)
    return torch.stack(rows).numpy()


def save(name: str, directory: Path, found: transformers.PreTrainedModel | None = None) -> Path:
    """config.json, model.safetensors and tokenizer files."""
    (found or model(name)).save_pretrained(directory)
    tokenizer().save(str(directory / "tokenizer.json"))
    return directory


def describe(
    directory: Path, *, pooling: str = "mean_tokens", normalise: bool = True, length: int | None = None
) -> None:
    """The files that sentence-transformers puts beside a model."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    flags = {
        f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    }
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **flags}))
    if length is not None:
        described = {"max_seq_length": length, "do_lower_case": False}
        (directory / "sentence_bert_config.json").write_text(json.dumps(described))


def tokenizer() -> Tokenizer:
    """WordPiece of letters and a few words, with BERT's special tokens and types of a pair, and its own truncation."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *letters,
        *(f"##{letter}" for letter in letters),
        "the",
        "sea",
        ".",
        "?",
    ]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    made = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(tokens[:4])
    made.enable_truncation(8)
    made.enable_padding(length=8)
    return made
