"""Chunks of whole sentences up to a size.

A sentence larger than the size is split at its clauses, then between words.
"""

from __future__ import annotations

from pydantic import Field
from typing_extensions import override

from stillroom.records import Document
from stillroom.text.chunking.boundaries import (
    Span,
    TextSplitter,
    find_split_points,
    merge_small,
)
from stillroom.text.chunking.tokens import TokenRuler
from stillroom.text.interfaces import Chunker

__all__ = ["Sentence"]


class Sentence(Chunker):
    """Packs whole sentences up to the size."""

    overlap: int = Field(
        default=0,
        ge=0,
        description="repeated tokens of the previous passage, at most half of size",
    )
    min_size: int = Field(
        default=8, ge=0, description="passages below this size are joined to the previous one"
    )

    @override
    def split(self, document: Document, ruler: TokenRuler) -> list[Span]:
        points = find_split_points(document, ruler, self.size)
        splitter = TextSplitter(
            ruler,
            [points.sentences, points.items],
            [points.lines, points.clauses, points.words],
            self.size,
            self.overlap,
            0.0,
            self.min_size,
        )
        spans = splitter.split(0, len(document.text))
        return merge_small(spans, ruler, self.size, self.min_size)
