"""Text in and out of a model: the tokenizer and the chat template that its checkpoint brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from treadle.errors import InvalidRequest
from treadle.formats.chat_template import ChatTemplate
from treadle.formats.gguf import GGUFFile
from treadle.formats.tokenizer import Tokenizer
from treadle.inference.encoder import Tokens
from treadle.models.checkpoint import Checkpoint

__all__ = ["ModelText"]


class ModelText:
    """Text in and out of one model. The chat template is compiled when it is first needed."""

    def __init__(self, tokenizer: Tokenizer, template: Callable[[], ChatTemplate | None]) -> None:
        self.tokenizer = tokenizer
        self._read_template = template

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ModelText | None:
        """None where the checkpoint brings no tokenizer. Raises InvalidFile, UnsupportedModel."""
        path, tensors = checkpoint.path, checkpoint.tensors
        if isinstance(tensors, GGUFFile):
            if "tokenizer.ggml.model" not in tensors.metadata:
                return None
            tokenizer = Tokenizer.from_gguf(tensors.metadata)
            source = {key: value for key, value in tensors.metadata.items() if key == "tokenizer.chat_template"}
            return cls(tokenizer, lambda: ChatTemplate.from_gguf(source, tokenizer))
        if not (path / "tokenizer.json").is_file():
            return None
        return cls(Tokenizer.from_file(path), lambda: ChatTemplate.from_directory(path))

    @cached_property
    def template(self) -> ChatTemplate | None:
        return self._read_template()

    def encode(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt text of a conversation. Raises InvalidRequest where the model has no chat template."""
        if self.template is None:
            raise InvalidRequest("messages: this model has no chat template")
        return self.template.render(messages)

    def encode_whole(self, text: str, second: str | None, limit: int | None) -> Tokens:
        """A text, or a pair, with what the model expects around it; cut to `limit` tokens where that is given."""
        return Tokens(*self.tokenizer.encode_typed(text, second, limit))

    def encode_rendered(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt, add_special=False)
