"""Grade by the cosine similarity of question and passage under the index's embedder.

Source: Karpukhin et al. 2020, "Dense Passage Retrieval", arXiv:2004.04906 (the score; that it
indicates whether a question is answered is an assumption, measured in the lab notebook). Thresholds
are specific to the embedder: tune them on your own questions if it is not the default one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, RelevanceGrader

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index

__all__ = ["Similarity"]


class Similarity(RelevanceGrader):
    """Cosine of the vectors, clipped at 0."""

    paper: ClassVar[str] = "arXiv:2004.04906"

    upper: float = Field(
        0.6, ge=0, le=1, description="minimum grade of a passage that has the answer"
    )
    lower: float = Field(
        0.35, ge=0, le=1, description="grade below which a passage does not have the answer"
    )

    @override
    def grade(
        self,
        query: Query,
        texts: Sequence[str],
        index: Index,
        model: TextModel | None = None,
    ) -> list[float]:
        nonempty = [i for i, text in enumerate(texts) if text.strip()]
        grades = [0.0] * len(texts)
        if not nonempty or not query.text.strip():
            return grades
        rows = index.embedder.embed([texts[i] for i in nonempty], kind="passage")
        likeness = np.asarray(rows) @ index.embed_query(query)
        for i, score in zip(nonempty, likeness, strict=True):
            grades[i] = float(np.clip(score, 0.0, 1.0))
        return grades
