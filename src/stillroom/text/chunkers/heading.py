"""Section by section: no passage runs over a heading, but that small sections are joined.

Within a section cuts are as in ``recursive``. A section below ``min_size`` is joined to the next
one of its level or deeper, else to the passage before. The default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Document, Passage
from stillroom.text.measuring import Ruler
from stillroom.text.method import Chunker, TextEmbedder, TokenCounter
from stillroom.text.splitting import Cutter, Span, find_boundaries, make_passages, merge_small

__all__ = ["Heading"]


class Heading(Chunker):
    """Cuts at headings first."""

    paper: ClassVar[str] = ""
    overlap: int = Field(
        default=0,
        ge=0,
        description="tokens that a passage repeats of the one before in its section",
    )
    min_size: int = Field(
        default=32, ge=0, description="a section below this is joined to its neighbor"
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
        sections = self._join(_sections(document), ruler)
        spans = (span for section in sections for span in cutter.cut(*section))
        merged = merge_small(spans, ruler, self.size, self.min_size)
        yield from make_passages(document, merged, "text.chunkers.heading")

    def _join(self, sections: list[tuple[int, int, int]], ruler: Ruler) -> Iterator[Span]:
        """Yield the sections, small ones joined forward to one of their level or deeper."""
        start, end, level = sections[0]
        for next_start, next_end, next_level in sections[1:]:
            is_small = ruler.measure(start, end) < self.min_size
            if is_small and self._takes_in(
                ruler, (start, end, level), (next_start, next_end, next_level)
            ):
                end = next_end
                continue
            yield start, end
            start, end, level = next_start, next_end, next_level
        yield start, end

    def _takes_in(
        self, ruler: Ruler, small: tuple[int, int, int], other: tuple[int, int, int]
    ) -> bool:
        """Say whether a small section is joined to the next one.

        A bare heading always is to its own parts; else both must fit, and the next be no higher.
        """
        start, end, level = small
        is_bare = "\n" not in ruler.text[start:end].strip()
        if other[2] <= level or not is_bare:
            fits = ruler.measure(start, other[1]) <= self.size
            return other[2] >= level and fits and ruler.excess(start, other[1], self.size) <= 1
        return True


def _sections(document: Document) -> list[tuple[int, int, int]]:
    """Return (start, end, level) of the text before, and under, each heading."""
    edges = [(0, 0), *((heading.start, heading.level) for heading in document.headings)]
    ends = [start for start, _ in edges[1:]] + [len(document.text)]
    found = [
        (start, end, level) for (start, level), end in zip(edges, ends, strict=True) if end > start
    ]
    return found or [(0, len(document.text), 0)]
