"""Fixed-size chunks, cut between words.

The baseline: sentences and paragraphs are ignored. Code fences and table rows that fit are kept
whole here too.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field
from typing_extensions import override

from stillroom.records import Document
from stillroom.text.chunking.boundaries import Span, TextSplitter, find_split_points
from stillroom.text.chunking.tokens import TokenRuler
from stillroom.text.interfaces import Chunker

__all__ = ["Fixed"]


class Fixed(Chunker):
    """Splits every ``size`` tokens, between words."""

    overlap: int = Field(
        default=0,
        ge=0,
        description="repeated tokens of the previous passage, at most half of size",
    )

    @override
    def split(self, document: Document, ruler: TokenRuler) -> Iterator[Span]:
        words = find_split_points(document, ruler, self.size).words
        splitter = TextSplitter(ruler, [words], [], self.size, self.overlap, 0.0)
        return splitter.split(0, len(document.text))
