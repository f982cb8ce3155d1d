"""Tensor axes, layers and sizes of a checkpoint, and its config after pruning.

Axes are derived from tensor names and checked against shapes, for the families in
``_SUPPORTED_FAMILIES``. An unknown tensor is rejected by name, never copied unchanged.

Layers are derived from tensor names of any architecture: ``PREFIX.NUMBER.REST`` is layer NUMBER.
What the config says of each layer follows them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from stillroom.checkpoints.layers import restack_config
from stillroom.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint
    from stillroom.distill.settings import PruneSettings

__all__ = [
    "LAYER_COUNT_KEYS",
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
]

Axis = Literal["hidden", "ffn", "gate_up", "query", "key_value", "qkv", "whole"]
"""``gate_up`` is two times ``ffn``, gate first; ``qkv`` is query, key and value; ``whole`` is not
sliced."""

_SUPPORTED_FAMILIES = frozenset(
    {"gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3"}
)
"""Model types with known use of the width; others may scale by it in their code."""

_TRANSPOSED = frozenset({"gpt2"})  # families that store linear weights as (in, out)

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
    """Sizes that pruning may change, and the head's width, which it keeps."""

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int

    def size(self, axis: Axis) -> int:
        """Return the length of an axis; 0 for ``whole``, which has no fixed length."""
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

    def with_sizes(self, sizes: Mapping[str, int | None]) -> StudentShape:
        """Return a copy with the sizes that are not None replaced."""
        return replace(self, **{key: value for key, value in sizes.items() if value is not None})


def get_axes(name: str, shape: tuple[int, ...], teacher: StudentShape, family: str) -> list[Axis]:
    """Return the axis of each dimension of a teacher's tensor.

    Raises:
        CheckpointError: If the name is unknown, or the shape unexpected.
    """
    axes = _named_axes(name, len(shape), family)
    if axes is None:
        raise _unknown_tensor_error(name, "has an unknown axis layout", family)
    for size, axis in zip(shape, axes, strict=True):
        if axis != "whole" and size != teacher.size(axis):
            raise _unknown_tensor_error(
                name, f"has {size} entries instead of {teacher.size(axis)}", family
            )
    return axes


def is_norm(name: str) -> bool:
    """Return whether a tensor belongs to a norm over hidden channels."""
    return re.search(_NORMS, name) is not None


def get_part(name: str) -> str:
    """Return the part of the model that a tensor belongs to, as listed in reports."""
    return next((part for pattern, part in _PARTS if re.search(pattern, name)), "other")


def read_shape(checkpoint: Checkpoint, layers: int) -> StudentShape:
    """Return the sizes of a teacher, from its config and the shapes of its tensors.

    Raises:
        CheckpointError: If its family is not supported, or a size cannot be determined.
    """
    family = str(checkpoint.config.get("model_type"))
    if family not in _SUPPORTED_FAMILIES:
        raise CheckpointError(
            f"width pruning of model type '{family:.40}' is not supported",
            code="distill.prune-family",
            where=str(checkpoint.folder),
            expected=f"one of: {', '.join(sorted(_SUPPORTED_FAMILIES))}",
            next="prune layers only (student.layers), or use a checkpoint as the student",
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
        f"config.json has no '{keys[0]}'",
        code="distill.prune-tensor",
        where=str(checkpoint.folder),
        expected="the config of a Hugging Face model",
        next="prune layers only (student.layers), or use a checkpoint as the student",
    )


def _find_dimension(checkpoint: Checkpoint, pattern: str, dimension: int) -> int:
    """Return a dimension of the first tensor whose name matches."""
    for name in checkpoint.names():
        shape = checkpoint.shape(name)
        if re.search(pattern, name) and len(shape) > dimension:
            return shape[dimension]
    raise _unknown_tensor_error(pattern, "is missing", str(checkpoint.config.get("model_type")))


def _unknown_tensor_error(name: str, problem: str, family: str) -> CheckpointError:
    return CheckpointError(
        f"tensor '{name:.120}' {problem}",
        code="distill.prune-tensor",
        where=name,
        expected=f"the tensors of a standard '{family:.40}' model",
        next="prune layers only (student.layers), or use a checkpoint as the student",
    )


_LAYER = re.compile(r"^(.*?)\.(\d+)\.(.+)$")
LAYER_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_LAYER_LISTS = (
    "layer_types",
    "mlp_layer_types",
    "moe_layers",
    "no_rope_layers",
)  # may be omitted from configs and derived


def map_layers(checkpoint: Checkpoint) -> tuple[dict[str, int], int]:
    """Return the layer number of every tensor within a layer, and the number of layers.

    Raises:
        CheckpointError: If the layers cannot be determined.
    """
    count = next(
        (int(checkpoint.config[key]) for key in LAYER_COUNT_KEYS if key in checkpoint.config), 0
    )
    numbers: dict[str, dict[str, int]] = {}
    for name in checkpoint.names():
        match = _LAYER.match(name)
        if match:
            numbers.setdefault(match[1], {})[name] = int(match[2])
    for names in numbers.values():
        found = set(names.values())
        if count and len(found) == count == max(found) + 1:  # the stated count may be huge
            return names, count
    raise CheckpointError(
        "the checkpoint's layers cannot be determined from tensor names",
        code="distill.no-layers",
        where=str(checkpoint.folder),
        expected=f"tensors named PREFIX.NUMBER.REST for {count} layers",
        next="use a checkpoint as the student",
    )


def count_layers(checkpoint: Checkpoint, settings: PruneSettings) -> int:
    """Return the number of layers that the student keeps at full width.

    Raises:
        RecipeError: If the teacher lacks these layers, or no layer fits max_parameters.
    """
    names, count = map_layers(checkpoint)
    if settings.keep is not None:
        check_layers_exist(settings.keep, count)
        return len(settings.keep)
    if settings.layers is not None:
        if settings.layers > count:
            raise RecipeError(
                f"student.layers is {settings.layers}, and the teacher has {count}",
                code="distill.layers",
                where="student.layers",
                expected=f"at most {count}",
                next="lower student.layers",
            )
        return settings.layers
    return _count_fitting_layers(checkpoint, names, count, settings.max_parameters)


def check_layers_exist(keep: Sequence[int], count: int) -> None:
    """Reject layer numbers that the teacher does not have.

    Raises:
        RecipeError: If the last one does not exist.
    """
    if keep[-1] >= count:
        raise RecipeError(
            f"the teacher has no layer {keep[-1]}",
            code="distill.layers",
            where="student.keep",
            expected=f"layers from 0 to {count - 1}",
            next="choose other layers, or set student.layers",
        )


def count_parameters(checkpoint: Checkpoint, kept: Sequence[int]) -> int:
    """Return the parameters of a student that keeps these layers; tied weights count once."""
    names, _ = map_layers(checkpoint)
    removed = sum(
        math.prod(checkpoint.shape(name))
        for name, number in names.items()
        if number not in set(kept)
    )
    return checkpoint.parameters - removed


def check_parameter_budget(parameters: int, teacher: int, settings: PruneSettings) -> None:
    """Reject a student of more than ``max_parameters``.

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


def drop_config_layers(
    config: Mapping[str, Any], resolved: Mapping[str, Any], count: int, kept: Sequence[int]
) -> dict[str, Any]:
    """Return a config for the kept layers, with the per-layer values of each.

    Args:
        config: Content of config.json.
        resolved: The config with derived values: layer kinds that follow from layer numbers must be
            written explicitly, because the numbers change.
        count: Number of the teacher's layers.
        kept: Kept layer numbers, ascending.

    Raises:
        CheckpointError: If layers compute with their own number.
    """
    if len(kept) == count:
        return dict(config)
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise CheckpointError(
            "attention is scaled by the layer number",
            code="distill.no-layers",
            where="config.json: scale_attn_by_inverse_layer_idx",
            expected="layers that do not depend on their position",
            next="prune the width only, or use a checkpoint as the student",
        )
    derived = {
        key: resolved[key]
        for key in _LAYER_LISTS
        if isinstance(resolved.get(key), list) and not isinstance(config.get(key), list)
    }
    counts = {key: count for key in LAYER_COUNT_KEYS if key in config}  # also if stated as text
    pruned = restack_config({**config, **derived, **counts}, kept)
    if "max_window_layers" in pruned:  # a number of first layers, as in Qwen2
        pruned["max_window_layers"] = sum(number < config["max_window_layers"] for number in kept)
    return pruned


def renumber_layer(name: str, number: int) -> str:
    """Replace the layer number in a tensor's name."""
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
