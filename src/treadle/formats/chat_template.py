"""Renders a model's chat template: messages in, the prompt text out. The template comes from strangers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from treadle.errors import InvalidFile, InvalidRequest
from treadle.formats.gguf import Value
from treadle.formats.json_file import read_bounded, read_json

if TYPE_CHECKING:
    from treadle.formats.tokenizer import Tokenizer

__all__ = ["ChatTemplate"]

MAX_SOURCE_BYTES = 256 << 10
MAX_OUTPUT_BASE = 4_000_000  # characters
MAX_OUTPUT_PER_INPUT = 8  # more of them for each character of input


class ChatTemplate:
    """A compiled template. ``render`` may be called from several threads; they take turns."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """``special_tokens``: variables such as ``bos_token``. Raises InvalidFile if the template does not compile."""
        from jinja2 import TemplateError  # not needed, and slow to import, until a chat is rendered

        from treadle.formats.template_sandbox import TemplateEnvironment

        if len(source.encode(errors="replace")) > MAX_SOURCE_BYTES:
            raise InvalidFile(f"chat template: expected at most {MAX_SOURCE_BYTES} bytes, found more")
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._lock = threading.Lock()
        self._environment = TemplateEnvironment()
        try:
            self._template = self._environment.from_string(source)
        except (
            TemplateError,
            SyntaxError,
            RecursionError,
            MemoryError,
            ArithmeticError,
            TypeError,
            ValueError,
        ) as error:
            raise InvalidFile(f"chat template: does not compile: {error}"[:400]) from None

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Value], tokenizer: Tokenizer) -> Self | None:
        """The template under ``tokenizer.chat_template``; None if the file has none."""
        source = metadata.get("tokenizer.chat_template")
        if source is None:
            return None
        if not isinstance(source, str):
            raise InvalidFile(f"metadata tokenizer.chat_template: expected a string, found {type(source).__name__}")
        ids = {"bos_token": tokenizer.bos_id, "eos_token": next(iter(tokenizer.eos_ids), None)}
        return cls(source, {name: tokenizer.token_text(number) for name, number in ids.items() if number is not None})

    @classmethod
    def from_directory(cls, directory: Path) -> Self | None:
        """From chat_template.jinja, or else tokenizer_config.json; None if neither has one."""
        config_path, template_path = directory / "tokenizer_config.json", directory / "chat_template.jinja"
        config = read_json(config_path) if config_path.is_file() else {}
        if template_path.is_file():
            source: Any = read_bounded(template_path, MAX_SOURCE_BYTES).decode(errors="replace")
        else:
            source = _default_template(config.get("chat_template"))
        if source is None:
            return None
        if not isinstance(source, str):
            raise InvalidFile(f"{config_path}: chat_template: expected a string, found {type(source).__name__}")
        return cls(source, _special_tokens(config))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for ``messages`` ({"role", "content", ...} each); encode it with ``add_special=False``.

        ``variables`` are passed to the template as they are (enable_thinking and the like). Raises InvalidRequest if
        the template refuses the messages or fails on them, InvalidFile if it tries to leave its sandbox or budget.
        """
        from jinja2 import TemplateError
        from jinja2.exceptions import SecurityError

        from treadle.formats.template_sandbox import BASE_BUDGET, BUDGET_PER_INPUT, Budget

        given = {
            **self._special_tokens,
            "documents": None,
            **(variables or {}),
            "messages": list(messages),
            "tools": tools,
        }
        size = _characters(given)
        with self._lock:
            self._environment.budget = Budget(BASE_BUDGET + BUDGET_PER_INPUT * size)
            try:
                text = self._template.render(given, add_generation_prompt=add_generation_prompt)
            except SecurityError as error:
                raise InvalidFile(f"chat template: {error}") from None
            except RecursionError:
                raise InvalidFile("chat template: recurses without end") from None
            except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
                raise InvalidRequest(f"messages: refused by the chat template: {error}"[:400]) from None
        most = MAX_OUTPUT_BASE + MAX_OUTPUT_PER_INPUT * size
        if len(text) > most:
            raise InvalidFile(f"chat template: expected at most {most} characters, rendered {len(text)}")
        return text


def _default_template(found: Any) -> Any:
    """tokenizer_config.json may hold a list of named templates."""
    if not isinstance(found, list):
        return found
    named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
    return named.get("default")


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Every ``..._token`` of a tokenizer_config.json, as text."""
    tokens: dict[str, str] = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _characters(value: Any) -> int:
    """Characters and items in nested lists and dicts; deeper than the recursion limit is the caller's mistake."""
    if isinstance(value, str):
        return len(value) + 1
    if isinstance(value, Mapping):
        return 1 + sum(map(_characters, value.values()))
    if isinstance(value, list | tuple):
        return 1 + sum(map(_characters, value))
    return 1
