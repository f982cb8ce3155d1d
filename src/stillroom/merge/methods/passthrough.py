"""Passthrough: one model unchanged, or scaled.

Source: no paper; the identity, for copying, converting the storage type, resharding, and stacking
the layers of ``slices`` (frankenmerge; ``merge.planning.planner`` renumbers them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import Array, BlockContext, MergeMethod

__all__ = ["Passthrough"]


class Passthrough(MergeMethod):
    """Copies bit for bit at ``scale`` 1."""

    paper: ClassVar[str] = ""
    uses_weights: ClassVar[bool] = False
    max_models: ClassVar[int] = 1

    scale: float = Field(1.0, description="multiplier of every merged tensor")

    @override
    def combine(
        self, base: Array | None, parents: Sequence[Array], measured: Any, context: BlockContext
    ) -> Array:
        return parents[0] if self.scale == 1 else parents[0] * self.scale
