"""Chunks along headings; small sections are merged.

Within a section, text is split as by ``recursive``. A section below ``min_size`` is joined to the
next one of its level or deeper, else to the previous passage. The default.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field
from typing_extensions import override

from stillroom.records import Document
from stillroom.text.chunking.boundaries import Span, make_recursive_splitter, merge_small
from stillroom.text.chunking.tokens import TokenRuler
from stillroom.text.interfaces import Chunker

__all__ = ["Heading"]

_Section = tuple[int, int, int]


class Heading(Chunker):
    """Splits at headings first."""

    overlap: int = Field(
        default=0,
        ge=0,
        description="tokens repeated from the previous passage of the same section",
    )
    min_size: int = Field(
        default=32, ge=0, description="sections below this size are joined to a neighbor"
    )

    @override
    def split(self, document: Document, ruler: TokenRuler) -> list[Span]:
        splitter = make_recursive_splitter(
            document, ruler, self.size, overlap=self.overlap, min_size=self.min_size
        )
        sections = _join_sections(_list_sections(document), ruler, self.size, self.min_size)
        spans = (span for section in sections for span in splitter.split(*section))
        return merge_small(spans, ruler, self.size, self.min_size)


def _join_sections(
    sections: list[_Section], ruler: TokenRuler, size: int, min_size: int
) -> Iterator[Span]:
    """Yield the sections; small ones are joined to the next of their level or deeper."""
    start, end, level = sections[0]
    for following in sections[1:]:
        is_small = ruler.measure(start, end) < min_size
        if is_small and _may_join(ruler, (start, end, level), following, size):
            end = following[1]
            continue
        yield start, end
        start, end, level = following
    yield start, end


def _may_join(ruler: TokenRuler, small: _Section, following: _Section, size: int) -> bool:
    """Return whether a small section may be joined to the next one.

    A bare heading is always joined to its subsections; otherwise both must fit and the next must
    not be of a higher level.
    """
    start, end, level = small
    is_bare = "\n" not in ruler.text[start:end].strip()
    if following[2] <= level or not is_bare:
        fits = ruler.measure(start, following[1]) <= size
        return following[2] >= level and fits and ruler.excess(start, following[1], size) <= 1
    return True


def _list_sections(document: Document) -> list[_Section]:
    """Return (start, end, level) of the text before, and under, each heading."""
    edges = [(0, 0), *((heading.start, heading.level) for heading in document.headings)]
    ends = [start for start, _ in edges[1:]] + [len(document.text)]
    sections = [
        (start, end, level) for (start, level), end in zip(edges, ends, strict=True) if end > start
    ]
    return sections or [(0, len(document.text), 0)]
