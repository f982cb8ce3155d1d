"""Tensor axes, layers and sizes of a checkpoint, and its config after pruning.

Read from tensor names and checked against shapes, for the families in ``SUPPORTED_FAMILIES``. A
tensor that is not understood is refused by name; none is copied in the hope that it does not
matter. Knows neither which channels are kept nor what they do.

Works on tensor names: ``PREFIX.NUMBER.REST`` is layer NUMBER. Every config list with one entry a
layer is shortened with the layers. Knows no architecture beyond that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from stillroom.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint
    from stillroom.distill.settings import PruneSettings

__all__ = [
    "SUPPORTED_FAMILIES",
    "Axis",
    "StudentShape",
    "check_layers_exist",
    "check_parameter_budget",
    "count_layers",
    "count_parameters",
    "drop_config_layers",
    "get_axes",
    "get_part",
    "is_norm",
    "map_layers",
    "read_shape",
    "renumber_layer",
    "space_evenly",
]


Axis = Literal["hidden", "ffn", "gate_up", "query", "key_value", "qkv", "whole"]


"""``gate_up`` is two times ``ffn``, gate first; ``qkv`` is query, key and value; ``whole`` is never
cut."""


SUPPORTED_FAMILIES = frozenset(
    {"gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3"}
)


"""Model types whose use of the width is known: any other may scale by it in its code."""


_TRANSPOSED = frozenset({"gpt2"})  # their linear layers keep weights as (in, out)


_NORMS = (
    r"(input_layernorm|post_attention_layernorm|pre_feedforward_layernorm"
    r"|post_feedforward_layernorm|ln_1|ln_2|ln_f|(^|model\.)norm)\.(weight|bias)$"
)


_LINEARS: tuple[tuple[str, Axis, Axis], ...] = (
    (r"self_attn\.q_proj", "query", "hidden"),
    (r"self_attn\.[kv]_proj", "key_value", "hidden"),
    (r"self_attn\.qkv_proj", "qkv", "hidden"),
    (r"self_attn\.o_proj", "hidden", "query"),
    (r"mlp\.(gate|up)_proj", "ffn", "hidden"),
    (r"mlp\.gate_up_proj", "gate_up", "hidden"),
    (r"mlp\.down_proj", "hidden", "ffn"),
    (r"attn\.c_attn", "qkv", "hidden"),
    (r"attn\.c_proj", "hidden", "query"),
    (r"mlp\.c_fc", "ffn", "hidden"),
    (r"mlp\.c_proj", "hidden", "ffn"),
)


_TABLES = r"(embed_tokens|wte|wpe|lm_head)\.weight$"


_WHOLE = r"(q_norm\.weight|k_norm\.weight|rotary_emb\.inv_freq|h\.\d+\.attn\.(masked_)?bias)$"


_PARTS = (
    (r"lm_head\.", "head"),
    (r"(embed_tokens|wte|wpe)\.", "embeddings"),
    (r"attn\.", "attention"),
    (r"mlp\.", "feed-forward"),
    (_NORMS, "norms"),
)


@dataclass(frozen=True, slots=True)
class StudentShape:
    """The sizes that pruning may change, and the head's width, which it leaves."""

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int

    def size(self, axis: Axis) -> int:
        """Return the length of an axis; 0 for ``whole``, which has none of its own."""
        query, key_value = self.attention_heads * self.head_dim, self.kv_heads * self.head_dim
        sizes: dict[Axis, int] = {
            "hidden": self.hidden_size,
            "ffn": self.intermediate_size,
            "gate_up": 2 * self.intermediate_size,
            "query": query,
            "key_value": key_value,
            "qkv": query + 2 * key_value,
            "whole": 0,
        }
        return sizes[axis]

    def to_json(self) -> dict[str, int]:
        """Return the sizes by name."""
        return {
            "layers": self.layers,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "attention_heads": self.attention_heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
        }

    def with_sizes(self, sizes: Mapping[str, int | None]) -> StudentShape:
        """Return the shape with those sizes changed that are not None."""
        return replace(self, **{key: value for key, value in sizes.items() if value is not None})


def get_axes(name: str, shape: tuple[int, ...], teacher: StudentShape, family: str) -> list[Axis]:
    """Return what each dimension of a teacher's tensor counts.

    Args:
        name: As the checkpoint has it.
        shape: Of the tensor.
        teacher: The teacher's sizes, which the tensor's must agree with.
        family: The config's ``model_type``.

    Raises:
        CheckpointError: If the name means nothing here, or the shape is not what it should be.
    """
    axes = _named_axes(name, len(shape), family)
    if axes is None:
        raise _unknown_tensor_error(name, "is not one whose width is understood", family)
    for size, axis in zip(shape, axes, strict=True):
        if axis != "whole" and size != teacher.size(axis):
            raise _unknown_tensor_error(
                name, f"has {size} entries where {teacher.size(axis)} belong", family
            )
    return axes


def is_norm(name: str) -> bool:
    """Return whether a tensor belongs to a norm over the hidden channels."""
    return re.search(_NORMS, name) is not None


def get_part(name: str) -> str:
    """Return which part of a model a tensor belongs to, as reports list them."""
    return next((part for pattern, part in _PARTS if re.search(pattern, name)), "other")


def read_shape(checkpoint: Checkpoint, layers: int) -> StudentShape:
    """Return a teacher's sizes, from its config and the shapes of its tensors.

    Args:
        checkpoint: The teacher.
        layers: How many layers it has.

    Raises:
        CheckpointError: If its family is not known, or a size cannot be told.
    """
    family = str(checkpoint.config.get("model_type"))
    if family not in SUPPORTED_FAMILIES:
        raise CheckpointError(
            f"how model type '{family:.40}' uses its width is not known",
            code="distill.prune-family",
            where=str(checkpoint.folder),
            expected=f"one of: {', '.join(sorted(SUPPORTED_FAMILIES))}",
            next="prune layers only (student.layers), or give a checkpoint as the student",
        )
    heads = _read_size(checkpoint, "num_attention_heads", "n_head")
    kv_heads = int(checkpoint.config.get("num_key_value_heads") or 0) or heads
    hidden = _find_dimension(checkpoint, r"(input_layernorm|ln_1)\.weight$", 0)
    query = _find_dimension(
        checkpoint, r"attn\.(o_proj|c_proj)\.weight$", 0 if family in _TRANSPOSED else 1
    )
    if not any(name.endswith("qkv_proj.weight") for name in checkpoint.names()):
        rows = _find_dimension(checkpoint, r"attn\.(k_proj|c_attn)\.weight$", 0)
        if family not in _TRANSPOSED and "num_key_value_heads" not in checkpoint.config:
            kv_heads = max(rows * heads // max(query, 1), 1)
    ffn = _find_dimension(
        checkpoint, r"mlp\.(down_proj|c_proj)\.weight$", 0 if family in _TRANSPOSED else 1
    )
    return StudentShape(layers, hidden, ffn, heads, kv_heads, query // heads)


def _named_axes(name: str, dimensions: int, family: str) -> list[Axis] | None:
    if re.search(_WHOLE, name):
        return ["whole"] * dimensions
    if re.search(_TABLES, name) and dimensions == 2:
        return ["whole", "hidden"]
    if is_norm(name) and dimensions == 1:
        return ["hidden"]
    for pattern, out, into in _LINEARS:
        if not re.search(rf"(^|\.){pattern}\.(weight|bias)$", name):
            continue
        if name.endswith(".bias"):
            return [out] if dimensions == 1 else None
        if dimensions == 2:
            return [into, out] if family in _TRANSPOSED else [out, into]
    return None


def _read_size(checkpoint: Checkpoint, *keys: str) -> int:
    for key in keys:
        value = checkpoint.config.get(key)
        if isinstance(value, int) and value > 0:
            return value
    raise CheckpointError(
        f"config.json does not say '{keys[0]}'",
        code="distill.prune-tensor",
        where=str(checkpoint.folder),
        expected="the config of a Hugging Face model",
        next="prune layers only (student.layers), or give a checkpoint as the student",
    )


def _find_dimension(checkpoint: Checkpoint, pattern: str, dimension: int) -> int:
    """Return a dimension of the first tensor whose name fits."""
    for name in checkpoint.names():
        shape = checkpoint.shape(name)
        if re.search(pattern, name) and len(shape) > dimension:
            return shape[dimension]
    raise _unknown_tensor_error(pattern, "is missing", str(checkpoint.config.get("model_type")))


def _unknown_tensor_error(name: str, what: str, family: str) -> CheckpointError:
    return CheckpointError(
        f"tensor '{name:.120}' {what}",
        code="distill.prune-tensor",
        where=name,
        expected=f"the tensors of an ordinary '{family:.40}' model",
        next="prune layers only (student.layers), or give a checkpoint as the student",
    )


_LAYER = re.compile(r"^(.*?)\.(\d+)\.(.+)$")


_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


_LAYER_LISTS = ("layer_types", "no_rope_layers")  # what configs may leave to be derived


_OTHER_LISTS = ("architectures", "_ids", "_id", "tokens")  # lists that never go by layers


def map_layers(checkpoint: Checkpoint) -> tuple[dict[str, int], int]:
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
    names, count = map_layers(checkpoint)
    if settings.keep is not None:
        check_layers_exist(settings.keep, count)
        return len(settings.keep)
    if settings.layers is not None:
        return min(settings.layers, count)
    return _count_fitting_layers(checkpoint, names, count, settings.max_parameters)


def check_layers_exist(keep: Sequence[int], count: int) -> None:
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
    names, _ = map_layers(checkpoint)
    gone = sum(
        math.prod(checkpoint.shape(name))
        for name, number in names.items()
        if number not in set(kept)
    )
    return checkpoint.parameters - gone


def check_parameter_budget(parameters: int, teacher: int, settings: PruneSettings) -> None:
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


def space_evenly(count: int, wanted: int) -> tuple[int, ...]:
    """Return ``wanted`` of ``count`` numbers, evenly spaced, the first and the last among them."""
    if wanted == 1:
        return (0,)
    return tuple((at * (count - 1) + (wanted - 1) // 2) // (wanted - 1) for at in range(wanted))


def drop_config_layers(
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


def renumber_layer(name: str, number: int) -> str:
    """Return a tensor's name with another layer number."""
    return _LAYER.sub(lambda match: f"{match[1]}.{number}.{match[3]}", name)


def _count_fitting_layers(
    checkpoint: Checkpoint, names: dict[str, int], count: int, share: float
) -> int:
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
