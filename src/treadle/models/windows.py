"""Which layers see a window of keys only: layer_types, sliding_window and their kin, read as transformers reads them.

A config holds the answer, `windows`: one number a layer, the keys that a row sees counting its own, 0 for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from treadle.models.config import Keys, convert
from treadle.plan.ir import Container

Windows = tuple[int, ...]
WindowReader = Callable[[Keys, Mapping[str, Any]], Windows]
WINDOW_BOUNDS: Final = (1, 1 << 30)
LAYER_TYPES: Final = {"full_attention": False, "sliding_attention": True}
GGUF_WINDOW: Final = "attention.sliding_window"


def every_layer(default: int | None) -> WindowReader:
    """sliding_window holds for every layer; null or absent in GGUF, and 0 there: none. `default`: of config.json."""

    def read(keys: Keys, values: Mapping[str, Any]) -> Windows:
        if keys.container is Container.GGUF:
            window = None if keys.take(GGUF_WINDOW) == 0 else _window(keys, GGUF_WINDOW, None)
        else:
            window = _window(keys, "sliding_window", None if "sliding_window" in keys else default)
        return _windows([True] * values["num_hidden_layers"], window)

    return read


def no_windows(keys: Keys, values: Mapping[str, Any]) -> Windows:
    """Of families whose layer_types may say full_attention only."""
    layers = int(values["num_hidden_layers"])
    if keys.container is not Container.GGUF and any(_layer_types(keys, layers) or ()):
        keys.refuse("layer_types", "sliding_attention", "full_attention")
    return (0,) * layers


def every_nth_full(period: int, default: int) -> WindowReader:
    """Every `period`-th layer sees all keys and the others a window, unless layer_types (or in GGUF
    attention.sliding_window_pattern, a period or a flag a layer) say otherwise. `default`: of sliding_window."""

    def read(keys: Keys, values: Mapping[str, Any]) -> Windows:
        layers = int(values["num_hidden_layers"])
        if keys.container is Container.GGUF:
            slides = _gguf_pattern(keys, layers, period)
            window = _window(keys, GGUF_WINDOW, default)
        else:
            stated = keys.take("sliding_window_pattern")
            nth = period if stated is None else int(convert(keys, "sliding_window_pattern", stated, int))
            slides = _layer_types(keys, layers) or tuple((layer + 1) % nth != 0 for layer in range(layers))
            window = _window(keys, "sliding_window", default if "sliding_window" not in keys else None)
        if window is None and any(slides):
            keys.refuse("sliding_window", None, "a number, as there are layers of sliding_attention")
        return _windows(slides, window)

    return read


def first_of_n_full(period: int, default: int) -> WindowReader:
    """ModernBERT: the first of every `period` layers sees all rows, unless layer_types say otherwise; the others those
    at most half of local_attention away, on both sides. `default`: of local_attention."""

    def read(keys: Keys, values: Mapping[str, Any]) -> Windows:
        layers, gguf = int(values["num_hidden_layers"]), keys.container is Container.GGUF
        every = "attention.sliding_window_pattern" if gguf else "global_attn_every_n_layers"
        nth = int(convert(keys, every, _or(keys.take(every), period), int))
        slides = None if gguf else _layer_types(keys, layers)
        if slides is None:
            slides = tuple(layer % nth != 0 for layer in range(layers))
        window = _window(keys, GGUF_WINDOW if gguf else "local_attention", default)
        return _windows(slides, None if window is None else window // 2 + 1)

    return read


def from_layer_on(keys: Keys, values: Mapping[str, Any]) -> Windows:
    """Qwen: with use_sliding_window, layers from max_window_layers on have the window; layer_types override that.
    In GGUF none."""
    layers = int(values["num_hidden_layers"])
    window, first = _qwen_window(keys)
    slides = _layer_types(keys, layers)
    if slides is None:
        slides = tuple(window is not None and layer >= first for layer in range(layers))
    if window is None and any(slides):
        keys.refuse("layer_types", "sliding_attention", "full_attention without a sliding_window in use")
    return _windows(slides, window)


def even_layers_up_to(keys: Keys, values: Mapping[str, Any]) -> Windows:
    """Qwen2-MoE: with use_sliding_window, layers 0, 2, ... below max_window_layers have the window; layer_types
    override that. In GGUF none."""
    layers = int(values["num_hidden_layers"])
    window, first = _qwen_window(keys)
    slides = _layer_types(keys, layers)
    if slides is None:
        slides = tuple(window is not None and layer % 2 == 0 and layer < first for layer in range(layers))
    if window is None and any(slides):
        keys.refuse("layer_types", "sliding_attention", "full_attention without a sliding_window in use")
    return _windows(slides, window)


def every_layer_if_used(keys: Keys, values: Mapping[str, Any]) -> Windows:
    """Qwen3-MoE: with use_sliding_window, every layer has the window. In GGUF none."""
    window, _ = _qwen_window(keys)
    return _windows([True] * values["num_hidden_layers"], window)


def _qwen_window(keys: Keys) -> tuple[int | None, int]:
    """sliding_window where use_sliding_window says so, and max_window_layers. llama.cpp knows no windows for these
    models, and its files say none."""
    if keys.container is Container.GGUF:
        return None, 0
    layers = int(convert(keys, "max_window_layers", _or(keys.take("max_window_layers"), 28), int, (0, 1 << 24)))
    used = convert(keys, "use_sliding_window", _or(keys.take("use_sliding_window"), False), bool)
    if not used and keys.take("sliding_window") == 0:  # as transformers writes it for Qwen2-MoE
        return None, layers
    window = _window(keys, "sliding_window", 4096 if "sliding_window" not in keys else None)
    return (window if used else None), layers


def _windows(slides: Iterable[bool], window: int | None) -> Windows:
    return tuple(window or 0 if slide else 0 for slide in slides)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _window(keys: Keys, key: str, default: int | None) -> int | None:
    found = keys.take(key)
    return default if found is None else int(convert(keys, key, found, int, WINDOW_BOUNDS))


def _layer_types(keys: Keys, layers: int) -> tuple[bool, ...] | None:
    """Which layers slide, as layer_types says; None where there is none."""
    found = keys.take("layer_types")
    if found is None:
        return None
    known = isinstance(found, list) and all(isinstance(kind, str) and kind in LAYER_TYPES for kind in found)
    if not known or len(found) != layers:
        keys.refuse("layer_types", found, f"{layers} of {', '.join(LAYER_TYPES)}")
    return tuple(LAYER_TYPES[kind] for kind in found)


def _gguf_pattern(keys: Keys, layers: int, period: int) -> tuple[bool, ...]:
    found = keys.take("attention.sliding_window_pattern")
    if isinstance(found, list):
        if len(found) < layers or any(type(slide) is not bool for slide in found):
            keys.refuse("attention.sliding_window_pattern", found, f"{layers} booleans, or a period")
        return tuple(found[:layers])
    if found is not None:
        period = int(convert(keys, "attention.sliding_window_pattern", found, int))
    return tuple((layer + 1) % period != 0 for layer in range(layers))
