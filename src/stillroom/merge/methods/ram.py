"""RAM: average elements changed by several models, and keep those changed by one.

Source: Yuan et al. 2026, arXiv:2601.13572 (Reinforced Agent Merging). An element counts as changed
if it moved by more than ``epsilon``; smaller changes are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

__all__ = ["Ram"]


class Ram(MergeMethod):
    """For models with sparse changes, such as those of reinforcement learning."""

    paper: ClassVar[str] = "arXiv:2601.13572"
    needs_base: ClassVar[bool] = True
    uses_weights: ClassVar[bool] = False

    epsilon: float = Field(
        1e-5, ge=0, description="minimum change for an element to count as changed"
    )

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        from stillroom.merge.tensors.task_vectors import (
            count_changed,
            drop_unchanged,
            plain_sum,
            task_vectors,
        )

        base, vectors = task_vectors(base, parents, "ram")
        count = count_changed(vectors, self.epsilon)
        total = plain_sum(drop_unchanged(vectors, self.epsilon))
        count += count == 0
        total /= count
        return base + total
