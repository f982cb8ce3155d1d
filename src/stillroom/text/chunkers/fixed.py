"""Fixed size: as many words as fit, wherever that ends.

The baseline that others must beat: sentences and paragraphs are cut without regard. Code fences and
table rows that fit are kept whole here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Document, Passage
from stillroom.text.measuring import Ruler
from stillroom.text.method import Chunker, TextEmbedder, TokenCounter
from stillroom.text.splitting import Cutter, find_boundaries, make_passages

__all__ = ["Fixed"]


class Fixed(Chunker):
    """Cuts after every ``size`` tokens, between words."""

    paper: ClassVar[str] = ""
    overlap: int = Field(
        default=0, ge=0, description="tokens that a passage repeats of the one before"
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
        words = find_boundaries(document, ruler, self.size).words
        cutter = Cutter(ruler, [words], [], self.size, min(self.overlap, self.size // 2), 0.0)
        spans = cutter.cut(0, len(document.text))
        yield from make_passages(document, spans, "text.chunkers.fixed")
