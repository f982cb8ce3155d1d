"""Which channels and heads a student keeps, from their scores.

Hidden channels are chosen once for the whole model; feed-forward channels and heads in each layer
for itself. Key-value groups go whole; within a group that stays, heads are compared with each other
only, so that every group keeps equally many. What is kept keeps its order; equal scores keep the
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.distill.width_axes import Axis, StudentShape
from stillroom.distill.width_statistics import WidthStatistics

__all__ = ["KeptLayer", "KeptWidth", "choose_width"]


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """What one layer keeps: numbers of feed-forward channels, heads and key-value heads."""

    ffn: tuple[int, ...]
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeptWidth:
    """What a student keeps of its teacher's width; ``layers`` goes by the teacher's numbers."""

    teacher: StudentShape
    hidden: tuple[int, ...]
    layers: dict[int, KeptLayer]

    def index(self, axis: Axis, layer: int | None) -> Tensor | None:
        """Return the entries of an axis that stay, rising within each part; None where all do.

        Args:
            axis: Of a tensor.
            layer: The teacher's number of the layer that holds it; None outside of layers.
        """
        if axis == "whole":
            return None
        if axis == "hidden":
            found = torch.tensor(self.hidden)
        elif layer is None:
            return None
        else:
            found = self._index_in(axis, self.layers[layer])
        return None if len(found) == self.teacher.size(axis) else found

    def _index_in(self, axis: Axis, kept: KeptLayer) -> Tensor:
        shape = self.teacher
        ffn = torch.tensor(kept.ffn)
        query = _rows_of(kept.heads, shape.head_dim)
        key = _rows_of(kept.kv_heads, shape.head_dim)
        parts = {
            "ffn": [ffn],
            "gate_up": [ffn, ffn + shape.intermediate_size],
            "query": [query],
            "key_value": [key],
            "qkv": [
                query,
                key + shape.size("query"),
                key + shape.size("query") + shape.size("key_value"),
            ],
        }
        return torch.cat(parts[axis])


def choose_width(
    teacher: StudentShape,
    student: StudentShape,
    statistics: WidthStatistics,
    layers: Sequence[int],
) -> KeptWidth:
    """Return what scores highest, as much of each as the student's sizes ask for.

    Args:
        teacher: Its sizes.
        student: What it shall have.
        statistics: The scores.
        layers: The layers that stay, by the teacher's numbers.
    """
    kept = {}
    for layer in layers:
        kv_heads, heads = _choose_heads(teacher, student, statistics.attention[layer])
        ffn = _highest(statistics.ffn[layer], student.intermediate_size)
        kept[layer] = KeptLayer(ffn, heads, kv_heads)
    return KeptWidth(teacher, _highest(statistics.hidden, student.hidden_size), kept)


def _choose_heads(
    teacher: StudentShape, student: StudentShape, scores: Tensor
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the key-value heads that stay, and the heads."""
    a_group = teacher.attention_heads // teacher.kv_heads
    squares = scores.square().view(teacher.kv_heads, a_group, teacher.head_dim).sum(-1)  # (G, H/G)
    kv_heads = _highest(squares.sum(-1), student.kv_heads)
    wanted = student.attention_heads // student.kv_heads
    heads = [
        group * a_group + head for group in kv_heads for head in _highest(squares[group], wanted)
    ]
    return kv_heads, tuple(heads)


def _highest(scores: Tensor, wanted: int) -> tuple[int, ...]:
    order = torch.argsort(scores, descending=True, stable=True)[:wanted]
    return tuple(sorted(order.tolist()))


def _rows_of(heads: Sequence[int], head_dim: int) -> Tensor:
    return (torch.tensor(heads)[:, None] * head_dim + torch.arange(head_dim)).flatten()
