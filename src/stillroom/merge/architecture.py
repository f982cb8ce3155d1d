"""Architecture by names: which tensors belong to which layer, which hold a row a token.

No list of model families: a layer is a number between dots in a tensor's name, and a stack is what
shares the words before that number. Config keys that count layers are found by their value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Stack",
    "find_stacks",
    "is_embedding",
    "layer_count",
    "main_stack",
    "relayer_config",
    "split_layer",
]

_LAYER = re.compile(r"^(?P<prefix>(?:.*?\.)?)(?P<layer>\d+)\.(?P<rest>.+)$")
_EMBEDDINGS = ("embed", "wte", "word_embeddings", "tok_embeddings", "shared.weight")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_PARTS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers that follow each other: the words before their numbers, and how many there are."""

    prefix: str
    count: int


def split_layer(name: str) -> tuple[str, int, str] | None:
    """Return what stands before a tensor's layer number, the number, and what stands after."""
    found = _LAYER.match(name)
    return (found["prefix"], int(found["layer"]), found["rest"]) if found else None


def find_stacks(names: Iterable[str]) -> dict[str, Stack]:
    """Return every stack of layers by its prefix."""
    counts: dict[str, int] = {}
    for name in names:
        parts = split_layer(name)
        if parts:
            counts[parts[0]] = max(counts.get(parts[0], 0), parts[1] + 1)
    return {prefix: Stack(prefix, count) for prefix, count in counts.items()}


def main_stack(names: Iterable[str], config: Mapping[str, Any]) -> Stack | None:
    """Return the one stack with as many layers as the config says; None if it is not clear."""
    wanted = layer_count(config)
    found = [stack for stack in find_stacks(names).values() if stack.count == wanted]
    return found[0] if len(found) == 1 else None


def layer_count(config: Mapping[str, Any]) -> int | None:
    """Return how many layers the (language) model has, as its config says."""
    for part in (config, *(config.get(key) or {} for key in _PARTS)):
        for key in _COUNTS:
            if isinstance(part, Mapping) and isinstance(part.get(key), int):
                return int(part[key])
    return None


def is_embedding(name: str) -> bool:
    """Return whether a tensor stands before the layers: it embeds tokens or positions."""
    return any(word in name for word in _EMBEDDINGS) and "lm_head" not in name


def relayer_config(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """Return a config for a model whose layer i is what was layer ``layers[i]``.

    Counts of layers are set anew, and every list with one entry a layer is put in the new order.
    """
    old = layer_count(config)

    def renew(part: Mapping[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in part.items():
            if key in _COUNTS and value == old:
                made[key] = len(layers)
            elif isinstance(value, list) and len(value) == old and old:
                made[key] = [value[layer] for layer in layers]
            elif key in _PARTS and isinstance(value, Mapping):
                made[key] = renew(value)
            else:
                made[key] = value
        return made

    return renew(config)
