"""Layers of two kinds: which of them attend, and what GGUF says about both kinds in one key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from treadle.models.config import Keys, convert
from treadle.plan.ir import Container

HEADS_KV: Final = "attention.head_count_kv"
Attends = tuple[bool, ...]
AttendsReader = Callable[[Keys, int], Attends]
"""(keys of config.json, layers) -> which of them attend."""


def read_kv_heads(keys: Keys, values: Mapping[str, Any]) -> int:
    """num_key_value_heads; in GGUF the one number that is not 0 of attention.head_count_kv, a number a layer."""
    if keys.container is not Container.GGUF:
        found = keys.take("num_key_value_heads")
        stated = values["num_attention_heads"] if found is None else found
        return int(convert(keys, "num_key_value_heads", stated, int, (1, 4096)))
    counts = {count for count in _counts(keys, values) if count} or {values["num_attention_heads"]}
    if len(counts) > 1:
        keys.refuse(HEADS_KV, sorted(counts), "one number for all layers that attend")
    return int(convert(keys, HEADS_KV, counts.pop(), int, (1, 4096)))


def attends(of_json: AttendsReader) -> Callable[[Keys, Mapping[str, Any]], Attends]:
    """A reader of which layers attend: by `of_json`, in GGUF those that have keys and values."""

    def read(keys: Keys, values: Mapping[str, Any]) -> Attends:
        if keys.container is Container.GGUF:
            return tuple(count != 0 for count in _counts(keys, values))
        return of_json(keys, int(values["num_hidden_layers"]))

    return read


def by_layer_types(
    kinds: Mapping[str, bool], default: Callable[[Keys, int], Attends]
) -> Callable[[Keys, int], Attends]:
    """layer_types names a kind of `kinds` (value: it attends) a layer; where there is none, `default`."""

    def read(keys: Keys, layers: int) -> Attends:
        found = keys.take("layer_types")
        if found is None:
            return default(keys, layers)
        known = isinstance(found, list) and all(isinstance(kind, str) and kind in kinds for kind in found)
        if not known or len(found) != layers:
            keys.refuse("layer_types", found, f"{layers} of {', '.join(kinds)}")
        return tuple(kinds[kind] for kind in found)

    return read


def has(key: str, default: bool, gguf_tensor: str) -> Callable[[Keys, Mapping[str, Any]], bool]:
    """A reader of a flag; in GGUF whether some layer has the tensor, as the first one may be of the other kind."""

    def read(keys: Keys, values: Mapping[str, Any]) -> bool:
        if keys.container is Container.GGUF:
            return any(name.startswith("blk.") and name.endswith(f".{gguf_tensor}") for name in keys.tensors)
        found = keys.take(key)
        return bool(convert(keys, key, default if found is None else found, bool))

    return read


def every_nth(keys: Keys, layers: int, period: str, offset: str, defaults: tuple[int, int]) -> tuple[bool, ...]:
    """Layers whose number is `offset` modulo `period`, both keys of config.json."""
    stated = [keys.take(key) for key in (period, offset)]
    n = int(convert(keys, period, defaults[0] if stated[0] is None else stated[0], int))
    first = int(convert(keys, offset, defaults[1] if stated[1] is None else stated[1], int, (0, 1 << 24)))
    if first >= n:
        keys.refuse(offset, first, f"less than {period} ({n})")
    return tuple(layer % n == first for layer in range(layers))


def _counts(keys: Keys, values: Mapping[str, Any]) -> tuple[int, ...]:
    layers = int(values["num_hidden_layers"])
    found = keys.take(HEADS_KV)
    counts = [found] * layers if type(found) is int else found
    if not isinstance(counts, list) or len(counts) != layers or any(type(count) is not int for count in counts):
        keys.refuse(HEADS_KV, found, f"{layers} numbers")
    return tuple(counts)
