"""Grade relevance by a cross-encoder, its score mapped to the range 0 to 1.

Source: Nogueira and Cho 2019, "Passage Re-ranking with BERT", arXiv:1901.04085. The score is
interpreted as log-odds; a checkpoint trained with another objective ranks passages as well, but
needs other thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import Query, RelevanceGrader
from stillroom.rag.model_calls import open_shared_model, read_fingerprint

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index

__all__ = ["CrossEncoder"]

_MAX_STEEPNESS = 60.0


class CrossEncoder(RelevanceGrader):
    """The logistic function of a cross-encoder's score."""

    paper: ClassVar[str] = "arXiv:1901.04085"

    checkpoint: str = Field(min_length=1, description="folder or hub:NAME of the cross-encoder")
    max_tokens: int | None = Field(
        None,
        ge=32,
        description="maximum tokens of question and passage together; default the model's",
    )
    device: str = Field("cpu", description="cpu, cuda, cuda:1, mps")
    upper: float = Field(
        0.5, ge=0, le=1, description="minimum grade of a passage that has the answer"
    )
    lower: float = Field(
        0.1, ge=0, le=1, description="grade below which a passage does not have the answer"
    )

    @property
    @override
    def moment(self) -> str:
        return read_fingerprint(self.checkpoint)

    @override
    def grade(
        self,
        query: Query,
        texts: Sequence[str],
        index: Index,
    ) -> list[float]:
        if not texts:
            return []
        reader = open_shared_model(self.checkpoint, max_tokens=self.max_tokens, device=self.device)
        scores = reader.score(query.text, texts)
        return [1 / (1 + math.exp(-min(max(s, -_MAX_STEEPNESS), _MAX_STEEPNESS))) for s in scores]
