"""Recursive splitting at the strongest boundary: paragraph, item, sentence, line, clause, word.

Source: the separators of LangChain's recursive splitter. Differs: tokens are counted once and the
cut is found by binary search instead of by repeated splitting.
"""

from __future__ import annotations

from pydantic import Field
from typing_extensions import override

from stillroom.records import Document
from stillroom.text.chunking.boundaries import (
    Span,
    make_recursive_splitter,
    merge_small,
)
from stillroom.text.chunking.tokens import TokenRuler
from stillroom.text.interfaces import Chunker

__all__ = ["Recursive"]


class Recursive(Chunker):
    """Splits at the strongest boundary between half the size and the size."""

    overlap: int = Field(
        default=0,
        ge=0,
        description="repeated tokens of the previous passage, at most half of size",
    )
    min_size: int = Field(
        default=16, ge=0, description="passages below this size are joined to the previous one"
    )

    @override
    def split(self, document: Document, ruler: TokenRuler) -> list[Span]:
        splitter = make_recursive_splitter(
            document, ruler, self.size, overlap=self.overlap, min_size=self.min_size
        )
        spans = splitter.split(0, len(document.text))
        return merge_small(spans, ruler, self.size, self.min_size)
