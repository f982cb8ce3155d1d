"""Single sentences for search, with a window of sentences for reading.

Each passage is a sentence (short ones are joined, ones larger than ``size`` are split). The text
shown and cited reaches from ``window`` passages before it to as many after it, within its section;
overlapping windows are shown as one. Costs many vectors: one for each sentence.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Document
from stillroom.text.chunking.boundaries import Span
from stillroom.text.chunking.sections import split_sentence_units
from stillroom.text.chunking.tokens import TokenRuler
from stillroom.text.interfaces import Chunker

__all__ = ["SentenceWindow"]


class SentenceWindow(Chunker):
    """Splits text into sentences, each with a window of neighbors as parent."""

    paper: ClassVar[str] = ""
    window: int = Field(
        default=3, ge=0, le=1000, description="sentences shown before and after the matched one"
    )
    min_size: int = Field(
        default=8, ge=0, description="sentences below this size are joined to the previous one"
    )

    @override
    def split(self, document: Document, ruler: TokenRuler) -> dict[Span, Span]:
        spans = split_sentence_units(document, ruler, self.size, min_size=self.min_size)
        headings = [heading.start for heading in document.headings]
        sections = [bisect_right(headings, end - 1) for _, end in spans]
        return {span: self._widen(index, spans, sections) for index, span in enumerate(spans)}

    def _widen(self, index: int, spans: Sequence[Span], sections: Sequence[int]) -> Span:
        """Return the window around a passage, within the headings before and after it."""
        first = max(index - self.window, bisect_left(sections, sections[index]))
        last = min(index + self.window, bisect_right(sections, sections[index]) - 1)
        return spans[first][0], spans[last][1]
