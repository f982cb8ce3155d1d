"""What each dimension of a tensor counts: hidden channels, heads, feed-forward channels, or none.

Read from tensor names and checked against shapes, for the families in ``FAMILIES``. A tensor that
is not understood is refused by name; none is copied in the hope that it does not matter. Knows
neither which channels are kept nor what they do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from stillroom.errors import CheckpointError

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint

__all__ = ["FAMILIES", "Axis", "StudentShape", "axes_of", "is_norm", "part_of", "read_shape"]

Axis = Literal["hidden", "ffn", "gate_up", "query", "key_value", "qkv", "whole"]
"""``gate_up`` is two times ``ffn``, gate first; ``qkv`` is query, key and value; ``whole`` is never
cut."""

FAMILIES = frozenset(
    {"gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3"}
)
"""Model types whose use of the width is known: any other may scale by it in its code."""

_ACROSS = frozenset({"gpt2"})  # their linear layers keep weights as (in, out)
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


def axes_of(name: str, shape: tuple[int, ...], teacher: StudentShape, family: str) -> list[Axis]:
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
        raise _unknown(name, "is not one whose width is understood", family)
    for size, axis in zip(shape, axes, strict=True):
        if axis != "whole" and size != teacher.size(axis):
            raise _unknown(name, f"has {size} entries where {teacher.size(axis)} belong", family)
    return axes


def is_norm(name: str) -> bool:
    """Return whether a tensor belongs to a norm over the hidden channels."""
    return re.search(_NORMS, name) is not None


def part_of(name: str) -> str:
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
    if family not in FAMILIES:
        raise CheckpointError(
            f"how model type '{family:.40}' uses its width is not known",
            code="distill.prune-family",
            where=str(checkpoint.folder),
            expected=f"one of: {', '.join(sorted(FAMILIES))}",
            next="prune layers only (student.layers), or give a checkpoint as the student",
        )
    heads = _read_size(checkpoint, "num_attention_heads", "n_head")
    kv_heads = int(checkpoint.config.get("num_key_value_heads") or 0) or heads
    hidden = _find(checkpoint, r"(input_layernorm|ln_1)\.weight$", 0)
    query = _find(checkpoint, r"attn\.(o_proj|c_proj)\.weight$", 0 if family in _ACROSS else 1)
    if not any(name.endswith("qkv_proj.weight") for name in checkpoint.names()):
        rows = _find(checkpoint, r"attn\.(k_proj|c_attn)\.weight$", 0)
        if family not in _ACROSS and "num_key_value_heads" not in checkpoint.config:
            kv_heads = max(rows * heads // max(query, 1), 1)
    ffn = _find(checkpoint, r"mlp\.(down_proj|c_proj)\.weight$", 0 if family in _ACROSS else 1)
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
            return [into, out] if family in _ACROSS else [out, into]
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


def _find(checkpoint: Checkpoint, pattern: str, dimension: int) -> int:
    """Return a dimension of the first tensor whose name fits."""
    for name in checkpoint.names():
        shape = checkpoint.shape(name)
        if re.search(pattern, name) and len(shape) > dimension:
            return shape[dimension]
    raise _unknown(pattern, "is missing", str(checkpoint.config.get("model_type")))


def _unknown(name: str, what: str, family: str) -> CheckpointError:
    return CheckpointError(
        f"tensor '{name:.120}' {what}",
        code="distill.prune-tensor",
        where=name,
        expected=f"the tensors of an ordinary '{family:.40}' model",
        next="prune layers only (student.layers), or give a checkpoint as the student",
    )
