"""Nearswap: move toward a second model, by at most ``t`` per element.

Source: alchemonaut's model card QuartetAnemoi-70B-t0.0001 (huggingface.co; there is no paper): the
second model's weight is t / |difference|, at most 1. Differs: computed in the equivalent form of
clipping the difference to -t and t.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

__all__ = ["Nearswap"]


class Nearswap(MergeMethod):
    """Elements in which base and model differ by at most t are those of the model."""

    paper: ClassVar[str] = ""
    needs_base: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False
    max_models: ClassVar[int] = 1

    t: float = Field(0.0001, ge=0, description="maximum change of an element from the base")

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        import numpy as np

        from stillroom.merge.tensors.task_vectors import task_vectors

        base, (vector,) = task_vectors(base, parents, "nearswap")
        moved: Array = base + np.clip(vector, -self.t, self.t)
        return moved
