"""Which tensors belong to which layer, and a checkpoint's config once some layers are gone.

Works on tensor names: ``PREFIX.NUMBER.REST`` is layer NUMBER. Every config list with one entry a
layer is shortened with the layers. Knows no architecture beyond that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stillroom.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint
    from stillroom.distill.prune_settings import PruneSettings

__all__ = [
    "check_share",
    "count_layers",
    "count_parameters",
    "layer_names",
    "refuse_missing",
    "renumber",
    "shorten_config",
    "spread",
]

_LAYER = re.compile(r"^(.*?)\.(\d+)\.(.+)$")
_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_LAYER_LISTS = ("layer_types", "no_rope_layers")  # what configs may leave to be derived
_OTHER_LISTS = ("architectures", "_ids", "_id", "tokens")  # lists that never go by layers


def layer_names(checkpoint: Checkpoint) -> tuple[dict[str, int], int]:
    """Return the layer number of every tensor within a layer, and how many layers there are.

    Raises:
        CheckpointError: If the layers cannot be told.
    """
    count = next(
        (int(checkpoint.config[key]) for key in _COUNT_KEYS if key in checkpoint.config), 0
    )
    numbers: dict[str, dict[str, int]] = {}
    for name in checkpoint.names():
        match = _LAYER.match(name)
        if match:
            numbers.setdefault(match[1], {})[name] = int(match[2])
    for names in numbers.values():
        if set(names.values()) == set(range(count)) and count:
            return names, count
    raise CheckpointError(
        "the checkpoint's layers cannot be told by their names",
        code="distill.no-layers",
        where=str(checkpoint.folder),
        expected=f"tensors named PREFIX.NUMBER.REST for {count} layers",
        next="give a checkpoint as the student",
    )


def count_layers(checkpoint: Checkpoint, settings: PruneSettings) -> int:
    """Return how many layers of full width the student keeps.

    Raises:
        RecipeError: If the teacher has not these layers, or no layer fits max_parameters.
    """
    names, count = layer_names(checkpoint)
    if settings.keep is not None:
        refuse_missing(settings.keep, count)
        return len(settings.keep)
    if settings.layers is not None:
        return min(settings.layers, count)
    return _fitting_layers(checkpoint, names, count, settings.max_parameters)


def refuse_missing(keep: Sequence[int], count: int) -> None:
    """Refuse layer numbers that the teacher has not.

    Raises:
        RecipeError: Naming the first of them.
    """
    if keep[-1] >= count:
        raise RecipeError(
            f"the teacher has no layer {keep[-1]}",
            code="distill.layers",
            where="student.keep",
            expected=f"layers from 0 to {count - 1}",
            next="choose others, or give student.layers",
        )


def count_parameters(checkpoint: Checkpoint, kept: Sequence[int]) -> int:
    """Return the parameters of a student that keeps these layers, tied weights once."""
    names, _ = layer_names(checkpoint)
    gone = sum(
        math.prod(checkpoint.shape(name))
        for name, number in names.items()
        if number not in set(kept)
    )
    return checkpoint.parameters - gone


def check_share(parameters: int, teacher: int, settings: PruneSettings) -> None:
    """Refuse a student of more than ``max_parameters``.

    Raises:
        RecipeError: If it is too large.
    """
    share = parameters / teacher
    if share > settings.max_parameters:
        raise RecipeError(
            f"the student would have {share:.1%} of the teacher's parameters",
            code="distill.too-large",
            where="student",
            expected=f"at most student.max_parameters, {settings.max_parameters:.1%}",
            next="choose smaller sizes, or raise student.max_parameters",
        )


def spread(count: int, wanted: int) -> tuple[int, ...]:
    """Return ``wanted`` of ``count`` numbers, evenly spaced, the first and the last among them."""
    if wanted == 1:
        return (0,)
    return tuple((at * (count - 1) + (wanted - 1) // 2) // (wanted - 1) for at in range(wanted))


def shorten_config(
    config: Mapping[str, Any], resolved: Mapping[str, Any], count: int, kept: Sequence[int]
) -> dict[str, Any]:
    """Return a config that says the kept layers' number and, for each, what it said before.

    Args:
        config: As config.json says.
        resolved: The same with what it leaves to be derived: kinds of layers that follow from
            their numbers must be written down, since the numbers change.
        count: The teacher's layers.
        kept: Layer numbers, rising.

    Raises:
        CheckpointError: If the layers compute by their own number.
    """
    short = dict(config)
    if len(kept) == count:
        return short
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise CheckpointError(
            "the layers scale their attention by their own number",
            code="distill.no-layers",
            where="config.json: scale_attn_by_inverse_layer_idx",
            expected="layers that mean the same at any place",
            next="prune the width only, or give a checkpoint as the student",
        )
    for key in _LAYER_LISTS:
        if isinstance(resolved.get(key), list) and not isinstance(config.get(key), list):
            short[key] = resolved[key]
    for key, value in short.items():
        if key in _COUNT_KEYS:
            short[key] = len(kept)
        elif isinstance(value, list) and len(value) == count and not key.endswith(_OTHER_LISTS):
            short[key] = [value[number] for number in kept]
    if "max_window_layers" in short:  # counts layers from the first, as Qwen2 does
        short["max_window_layers"] = sum(number < config["max_window_layers"] for number in kept)
    return short


def renumber(name: str, number: int) -> str:
    """Return a tensor's name with another layer number."""
    return _LAYER.sub(lambda match: f"{match[1]}.{number}.{match[3]}", name)


def _fitting_layers(checkpoint: Checkpoint, names: dict[str, int], count: int, share: float) -> int:
    inside = sum(math.prod(checkpoint.shape(name)) for name in names)
    outside = checkpoint.parameters - inside
    fitting = int((share * checkpoint.parameters - outside) / (inside / count))
    if fitting < 1:
        raise RecipeError(
            f"the embeddings alone are {outside / checkpoint.parameters:.1%} of the teacher",
            code="distill.too-large",
            where="student.max_parameters",
            expected=f"more than {share:.1%}, so that one layer fits",
            next="raise student.max_parameters, or shrink the width too (student.prune: both)",
        )
    return min(fitting, count)
