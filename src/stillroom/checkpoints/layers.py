"""What a config says of each layer, and configs for layers in another order or number.

Keys are found by their value (a list with one entry per layer) or by name: lists of layers'
numbers, and numbers from which an architecture computes which layers are dense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.errors import CheckpointError

__all__ = ["count_layers", "read_layer_values", "restack_config", "set_layer_values"]

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_PARTS = ("text_config", "llm_config", "language_config")
_NUMBER_LISTS = frozenset(
    {
        "attn_layer_indices",
        "cross_attention_layers",
        "full_attn_idxs",
        "hybrid_layer_ids",
        "local_layer_ids",
        "mlp_only_layers",
        "moe_layers",
        "rope_scaling_layers",
    }
)
_DENSE_STARTS = frozenset({"first_k_dense_replace", "num_dense_layers"})
_PERIODS = frozenset({"decoder_sparse_step", "moe_layer_interval"})
_OTHER_LISTS = (  # suffixes of lists not by layer
    *("architectures", "_ids", "_id", "tokens", "_section", "_factor", "time_step_limit"),
    *("out_indices", "out_features", "modules_to_not_convert", "keys_to_ignore_at_inference"),
)
_MAX_LAYERS = 10_000  # a stranger's count would otherwise fill the memory


def count_layers(config: Mapping[str, Any]) -> int | None:
    """Return the number of layers of the (language) model in its config."""
    for part in (config, *(config.get(key) or {} for key in _PARTS)):
        for key in _COUNTS:
            if isinstance(part, Mapping) and isinstance(part.get(key), int):
                return int(part[key])
    return None


def read_layer_values(config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what a config, or its part for the language model, says of each layer, by key.

    Where it lists layers' numbers, or counts the first dense layers, each layer has a boolean.

    Raises:
        CheckpointError: If it states more layers than any model has.
    """
    count = _count_listed(config)
    values: dict[str, list[Any]] = {}
    for part in (config, *(config.get(key) for key in _PARTS)):
        if count > 0 and isinstance(part, Mapping) and _states_count(part, count):
            pairs = ((key, _split_value(key, value, count)) for key, value in part.items())
            values |= {key: split for key, split in pairs if split is not None}
    return values


def _count_listed(config: Mapping[str, Any]) -> int:
    """Return the number of layers, 0 if unknown; refuse one that no model has."""
    count = count_layers(config) or 0
    if count > _MAX_LAYERS:
        raise CheckpointError(
            f"config.json states {count} layers",
            code="checkpoint.config",
            where="config.json",
            expected=f"at most {_MAX_LAYERS}",
            next="correct the number of layers in config.json",
        )
    return count


def _states_count(part: Mapping[str, Any], count: int) -> bool:
    """Return whether a part counts these layers: its lists may be by layer, others' are not."""
    return any(part.get(key) == count for key in _COUNTS)


def _split_value(key: str, value: Any, count: int) -> list[Any] | None:
    """Return a value's part for each layer; None of a value that is not by layer."""
    is_list, is_number = isinstance(value, list | tuple), isinstance(value, int)
    if key in _NUMBER_LISTS:
        listed = {layer for layer in value if isinstance(layer, int)} if is_list else set()
        return [layer in listed for layer in range(count)] if is_list else None
    if key in _DENSE_STARTS:
        return [layer < value for layer in range(count)] if is_number else None
    if key in _PERIODS:
        is_period = is_number and value > 0
        return [(layer + 1) % value == 0 for layer in range(count)] if is_period else None
    if is_list or (isinstance(value, str) and key.endswith("pattern")):
        return list(value) if len(value) == count and not key.endswith(_OTHER_LISTS) else None
    return None


def restack_config(
    config: Mapping[str, Any],
    layers: Sequence[int],
    values: Sequence[Mapping[str, Sequence[Any]]] = (),
) -> dict[str, Any]:
    """Return a config for a model whose layer i is the former layer ``layers[i]``.

    Layer counts are updated, and the values of each layer follow it.

    Args:
        config: The former config.
        layers: Numbers of the layers in the models that they come from.
        values: For each layer, the ``read_layer_values`` of its model; by default of ``config``.

    Raises:
        CheckpointError: If a key cannot state the layers in this order, or a model lacks it, or
            the config states more layers than any model has.
    """
    old = _count_listed(config)
    values = values or [read_layer_values(config)] * len(layers)

    def renew(part: Mapping[str, Any]) -> dict[str, Any]:
        renewed: dict[str, Any] = {}
        is_counted = _states_count(part, old)
        for key, value in part.items():
            if key in _COUNTS and value == old:
                renewed[key] = len(layers)
            elif key in _PARTS and isinstance(value, Mapping):
                renewed[key] = renew(value)
            elif old > 0 and is_counted and _split_value(key, value, old) is not None:
                if not all(key in known for known in values):
                    raise _order_error(key, "not every model states it")
                stacked = [known[key][layer] for known, layer in zip(values, layers, strict=True)]
                renewed[key] = _join_values(key, stacked, value)
            else:
                renewed[key] = value
        return renewed

    return renew(config)


def set_layer_values(
    config: Mapping[str, Any], values: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Return a config that states values of each layer, in the part that counts the layers.

    Raises:
        CheckpointError: If a key cannot state them.
    """
    for key in _PARTS:
        if isinstance(config.get(key), Mapping) and not any(name in config for name in _COUNTS):
            return {**config, key: set_layer_values(config[key], values)}
    stated = {key: _join_values(key, each, config.get(key)) for key, each in values.items()}
    return {**config, **stated}


def _join_values(key: str, values: Sequence[Any], former: Any) -> Any:
    """Return a key's value that says this of each layer, in the form of the former value."""
    joined: Any = list(values)
    if key in _NUMBER_LISTS:
        joined = [layer for layer, is_listed in enumerate(values) if is_listed]
    elif key in _DENSE_STARTS:
        joined = sum(values)
    elif key in _PERIODS:
        joined = former
    elif isinstance(former, str):
        joined = "".join(values)
    if _split_value(key, joined, len(values)) != list(values):
        raise _order_error(key, "it counts from the first layer")
    return joined


def _order_error(key: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"config.json cannot state {key:.60} of the layers in this order: {problem}",
        code="checkpoint.layer-order",
        where=f"config.json: {key:.60}",
        expected="layers in an order that their architecture can load",
        next="choose other layers, or keep those at the start and their repetition in place",
    )
