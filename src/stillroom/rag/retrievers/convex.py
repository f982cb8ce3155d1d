"""Fuse keyword and dense scores by a convex combination (``ranking.fuse_scores``); the default.

Source: Bruch, Gai and Ingber 2022, "An Analysis of Fusion Functions for Hybrid Retrieval",
arXiv:2210.11934: alpha * n(dense) + (1 - alpha) * n(keyword), where n maps a list's scores to 0 to
1 by its lowest and highest; a passage missing from a list scores 0 there. Differs from the paper:
the lists are cut at a depth, and scores that one of them lacks are not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import HybridRetriever
from stillroom.rag.retrieval.ranking import fuse_scores

if TYPE_CHECKING:
    from stillroom.rag.types import RankedRows

__all__ = ["Convex"]


class Convex(HybridRetriever):
    """Weighted sum of the normalized scores of a keyword and a dense list."""

    paper: ClassVar[str] = "arXiv:2210.11934"

    alpha: float = Field(0.5, ge=0, le=1, description="weight of the dense list; keyword the rest")
    depth: int = Field(100, ge=1, le=10_000, description="number of hits of each list to fuse")

    @override
    def fuse(self, rankings: Sequence[RankedRows]) -> RankedRows:
        return fuse_scores(rankings, [1 - self.alpha, self.alpha])
