"""Small chunks for search, with the larger parent chunk for reading.

Parts of at most ``parent_size`` tokens are cut along headings, as ``heading`` does, and each is cut
into passages of at most ``size``, as ``recursive`` does. Passages are what is embedded and matched;
an answer is given, and cites, the part. A short passage has a sharper vector than the long part
around it, and a part holds what a sentence needs to be understood.

There is one level: a part has no part of its own. Rules, as auto-merging in Haystack and LlamaIndex
has them, say at asking time how many of its passages must be found before a part is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Document, Passage
from stillroom.text.chunking.boundaries import (
    TextSplitter,
    find_split_points,
    make_passages,
    merge_small,
)
from stillroom.text.chunking.sections import split_sections
from stillroom.text.chunking.tokens import TokenRuler
from stillroom.text.interfaces import Chunker, TextEmbedder, TokenCounter

__all__ = ["ParentChild"]


class ParentChild(Chunker):
    """Cuts parts along headings, and each part into passages that know it."""

    paper: ClassVar[str] = ""
    size: int = Field(default=64, ge=4, le=100_000, description="most tokens of a passage")
    parent_size: int = Field(
        default=300, ge=4, le=100_000, description="most tokens of the part that is shown"
    )
    overlap: int = Field(
        default=0, ge=0, description="tokens that a passage repeats of the one before in its part"
    )
    min_size: int = Field(
        default=16, ge=0, description="a passage or section below this is joined to its neighbor"
    )

    @override
    def chunk(
        self,
        document: Document,
        *,
        count: TokenCounter | None = None,
        embed: TextEmbedder | None = None,
    ) -> Iterator[Passage]:
        ruler = TokenRuler(document.text, count)
        found = find_split_points(document, ruler, self.size)
        cutter = TextSplitter(
            ruler,
            [found.paragraphs, found.items, found.sentences, found.lines],
            [found.clauses, found.words],
            self.size,
            min(self.overlap, self.size // 2),
            min_size=min(self.min_size, self.size // 2),
        )
        wide = max(self.parent_size, self.size)
        parts = split_sections(document, ruler, wide, min_size=self.min_size)
        parents = {
            span: part
            for part in parts
            for span in merge_small(cutter.cut(*part), ruler, self.size, self.min_size)
        }
        yield from make_passages(document, parents, "text.chunkers.parent_child", parents)
