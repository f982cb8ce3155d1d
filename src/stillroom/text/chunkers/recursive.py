"""The strongest boundary in reach: paragraph, then list item, sentence, line, clause, word.

Source: the separators of LangChain's recursive splitter, but tokens are counted once and a cut is
chosen by binary search instead of by splitting again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Document, Passage
from stillroom.text.measuring import Ruler
from stillroom.text.method import Chunker, TextEmbedder, TokenCounter
from stillroom.text.splitting import Cutter, find_boundaries, make_passages, merge_small

__all__ = ["Recursive"]


class Recursive(Chunker):
    """Cuts at the strongest boundary between half the size and the size."""

    paper: ClassVar[str] = ""
    overlap: int = Field(
        default=0, ge=0, description="tokens that a passage repeats of the one before"
    )
    min_size: int = Field(
        default=16, ge=0, description="a passage below this is joined to the one before"
    )

    @override
    def chunk(
        self,
        document: Document,
        *,
        count: TokenCounter | None = None,
        embed: TextEmbedder | None = None,
    ) -> Iterator[Passage]:
        ruler = Ruler(document.text, count)
        found = find_boundaries(document, ruler, self.size)
        cutter = Cutter(
            ruler,
            [found.paragraphs, found.items, found.sentences, found.lines],
            [found.clauses, found.words],
            self.size,
            min(self.overlap, self.size // 2),
            min_size=min(self.min_size, self.size // 2),
        )
        spans = cutter.cut(0, len(document.text))
        merged = merge_small(spans, ruler, self.size, self.min_size)
        yield from make_passages(document, merged, "text.chunkers.recursive")
