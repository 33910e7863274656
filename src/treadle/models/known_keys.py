"""Config keys that do not change the maths of any family, and those that may stand there with one value only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_HF_IGNORED: Final = """
bookkeeping: _name_or_path _commit_hash name_or_path model_type architectures transformers_version torch_dtype dtype
bookkeeping: auto_map transformers.js_config task_specific_params tags license unsloth_version unsloth_fixed
training: initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop hidden_dropout_prob
training: attention_probs_dropout_prob embedding_dropout gradient_checkpointing
training: output_router_logits router_aux_loss_coef
how transformers runs it: use_cache pretraining_tp output_attentions output_hidden_states return_dict torchscript
how transformers runs it: chunk_size_feed_forward attn_implementation _attn_implementation
how transformers runs it: _attn_implementation_autoset tie_last_hidden_states is_llama_config use_bfloat16
how transformers runs it: tf_legacy_loss tie_encoder_decoder tokenizer_class max_sequence_length prefix
special tokens, for whoever makes text: bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id cls_token_id
special tokens, for whoever makes text: mask_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
generation, which generation_config.json rules: max_length min_length max_new_tokens do_sample early_stopping num_beams
generation, which generation_config.json rules: num_beam_groups diversity_penalty temperature top_k top_p typical_p
generation, which generation_config.json rules: repetition_penalty length_penalty no_repeat_ngram_size
generation, which generation_config.json rules: encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
generation, which generation_config.json rules: output_scores return_dict_in_generate remove_invalid_values
generation, which generation_config.json rules: exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
classification heads: id2label label2id num_labels problem_type finetuning_task
"""
"""reason: keys"""

HF_IGNORED: Final = frozenset(key for line in _HF_IGNORED.splitlines() for key in line.partition(": ")[2].split())
"""Keys of config.json that change nothing."""
HF_ONLY: Final[Mapping[str, object]] = {
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "rope_interleaved": False,
    "per_layer_config": None,
    "use_bidirectional_attention": False,
}
"""Keys of config.json that may be there with this one value, or null."""
GGUF_IGNORED: Final = frozenset({"tensor_data_layout", "rope.scaling.finetuned"})
"""Metadata keys behind the architecture's prefix that change nothing."""
GGUF_ONLY: Final[Mapping[str, object]] = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True}
"""Metadata keys behind the prefix that may be there with this one value."""
