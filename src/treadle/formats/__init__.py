"""Files and text: weight containers, tokenizers, chat templates and the model cache. Knows no plan and no model."""
