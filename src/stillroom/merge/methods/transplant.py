"""Transplant: give the base another model's tokenizer, without training.

Source: Goddard and Fernandes Neto 2025, arXiv:2506.06607: rows of shared tokens are copied; a new
token is approximated by a sum of shared ones in the donor's embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.merge.interfaces import ArchitectureMerge
from stillroom.merge.planning.transplant import plan_transplant

if TYPE_CHECKING:
    from stillroom.merge.planning.inputs import MergeSource, TensorRules
    from stillroom.merge.planning.plan import MergePlan

__all__ = ["Transplant"]


class Transplant(ArchitectureMerge):
    """The base keeps its layers and gets new token rows, so that the models can be merged."""

    paper: ClassVar[str] = "arXiv:2506.06607"
    max_models: ClassVar[int] = 1

    k: int = Field(64, ge=1, description="maximum number of shared tokens per new token")

    @override
    def arrange(
        self, base: MergeSource | None, parents: Sequence[MergeSource], rules: TensorRules
    ) -> MergePlan:
        return plan_transplant(base, parents, rules, k=self.k)
