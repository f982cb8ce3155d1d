"""Small chunks for search, with the larger parent chunk for reading.

Parent chunks of at most ``parent_size`` tokens follow headings, as with ``heading``, and each is
split into passages of at most ``size``, as with ``recursive``. Passages are embedded and matched;
the parent is shown to the reader and cited. A short passage has a sharper vector than the long
parent, which in turn holds the context that a sentence needs.

There is one level of parents. Rules such as auto-merging in Haystack and LlamaIndex decide at
query time how many passages must match before a parent is shown.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Document
from stillroom.text.chunking.boundaries import (
    Span,
    make_recursive_splitter,
    merge_small,
)
from stillroom.text.chunking.sections import split_sections
from stillroom.text.chunking.tokens import TokenRuler
from stillroom.text.interfaces import Chunker

__all__ = ["ParentChild"]


class ParentChild(Chunker):
    """Splits text into parents along headings, and each parent into passages."""

    paper: ClassVar[str] = ""
    size: int = Field(default=64, ge=4, le=100_000, description="maximum tokens of a passage")
    parent_size: int = Field(
        default=300, ge=4, le=100_000, description="maximum tokens of a parent chunk"
    )
    overlap: int = Field(
        default=0, ge=0, description="tokens repeated from the previous passage of the same parent"
    )
    min_size: int = Field(
        default=16, ge=0, description="passages or sections below this size join a neighbor"
    )

    @override
    def split(self, document: Document, ruler: TokenRuler) -> dict[Span, Span]:
        cutter = make_recursive_splitter(
            document, ruler, self.size, overlap=self.overlap, min_size=self.min_size
        )
        wide = max(self.parent_size, self.size)
        parts = split_sections(document, ruler, wide, min_size=self.min_size)
        return {
            span: part
            for part in parts
            for span in merge_small(cutter.cut(*part), ruler, self.size, self.min_size)
        }
