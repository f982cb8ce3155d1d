"""Rerank by the scores of a cross-encoder, which reads query and passage together.

Source: Nogueira and Cho 2019, "Passage Re-ranking with BERT", arXiv:1901.04085. Differs from the
paper: any sequence-classification checkpoint with one or two labels can be used, as by Haystack's
TransformersSimilarityRanker; a passage is read
with its title and headings. ``models.encoders.sequence_classifiers.CrossEncoder`` scores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import PassageReranker, Query
from stillroom.rag.model_calls import open_shared_model, read_fingerprint
from stillroom.rag.retrieval.ranking import sort_hits
from stillroom.rag.types import get_text_with_headings

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index
    from stillroom.records import Hit

__all__ = ["CrossEncoder"]


class CrossEncoder(PassageReranker):
    """Pointwise scores of a cross-encoder."""

    paper: ClassVar[str] = "arXiv:1901.04085"

    checkpoint: str = Field(min_length=1, description="folder or hub:NAME of the cross-encoder")
    max_tokens: int | None = Field(
        None, ge=32, description="maximum tokens of query and passage; by default the model's"
    )
    depth: int = Field(50, ge=1, le=1000, description="number of first hits that are scored")
    device: str = Field("cpu", description="cpu, cuda, cuda:1, mps")

    @property
    @override
    def moment(self) -> str:
        return read_fingerprint(self.checkpoint)

    @override
    def rerank(
        self,
        query: Query,
        hits: Sequence[Hit],
        index: Index,
        model: TextModel | None = None,
    ) -> list[Hit]:
        if not hits:
            return []
        reader = open_shared_model(self.checkpoint, max_tokens=self.max_tokens, device=self.device)
        texts = [get_text_with_headings(hit.passage) for hit in hits[: self.depth]]
        return sort_hits(hits, reader.score(query.text, texts))
