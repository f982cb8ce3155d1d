"""A teacher's tensors and config cut to a student's width.

Two things follow from the hidden size besides shapes. A norm divides by the size of what is left,
so its weight is scaled by ``norm_shrinkage``. Gemma multiplies its embeddings by the square root of
the hidden size; that factor is put back into the weights, and taken out of the last norm where the
head shares them. Scaled tensors are computed in float64; others keep their bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stillroom.distill.width_axes import StudentShape, axes_of, is_norm, part_of
from stillroom.distill.width_choice import KeptWidth

__all__ = ["WidthCut"]

_GEMMA = ("gemma", "gemma2", "gemma3_text")
_PREFIXES = ("model.", "transformer.")


@dataclass(frozen=True, slots=True)
class WidthCut:
    """How tensors are cut: what is kept, and what norms are multiplied with, by their names."""

    kept: KeptWidth
    student: StudentShape
    family: str
    is_tied: bool
    shrinkage: Mapping[str, float] = field(default_factory=dict)

    def cut(self, name: str, tensor: Tensor, layer: int | None) -> Tensor:
        """Return what a student keeps of a teacher's tensor.

        Args:
            name: As the teacher has it.
            tensor: The whole; returned as it is where nothing of it goes.
            layer: The teacher's number of the layer that holds it; None outside of layers.

        Raises:
            CheckpointError: If the tensor is not understood.
        """
        axes = axes_of(name, tuple(tensor.shape), self.kept.teacher, self.family)
        for dimension, axis in enumerate(axes):
            index = self.kept.index(axis, layer)
            if index is not None:
                tensor = tensor.index_select(dimension, index)
        factor = self._factor(name)
        if factor == 1.0:
            return tensor
        offset = 1.0 if is_norm(name) and self.family in _GEMMA else 0.0  # they multiply by 1 + w
        scaled = (tensor.double() + offset) * factor - offset
        return scaled.to(tensor.dtype)

    def cut_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config with the student's sizes; a head's size is said outright."""
        cut = dict(config)
        shape = self.student
        if self.family == "gpt2":
            cut |= {"n_embd": shape.hidden_size, "n_head": shape.attention_heads}
            cut["n_inner"] = shape.intermediate_size
            return cut
        return cut | {
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_attention_heads": shape.attention_heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
        }

    def _factor(self, name: str) -> float:
        """Return what a tensor's entries (a Gemma norm's ``1 + w``) are multiplied with."""
        if len(self.kept.hidden) == self.kept.teacher.hidden_size:
            return 1.0
        embedding = math.sqrt(self.kept.teacher.hidden_size / self.student.hidden_size)
        is_scaled = self.family in _GEMMA
        if is_scaled and (part_of(name) == "embeddings" or (self.is_tied and "lm_head" in name)):
            return embedding
        if not is_norm(name) or not name.endswith(".weight"):
            return 1.0
        module = name.removesuffix(".weight")
        for prefix in _PREFIXES:
            module = module.removeprefix(prefix)
        factor = self.shrinkage.get(module, 1.0)
        is_last = module == "norm"
        return factor / embedding if is_last and is_scaled and self.is_tied else factor
