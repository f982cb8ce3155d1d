"""Chunks along headings; small sections are merged.

Within a section, text is split as by ``recursive``. A section below ``min_size`` is joined to the
next one of its level or deeper, else to the previous passage. The default.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Document
from stillroom.text.chunking.boundaries import Span
from stillroom.text.chunking.sections import split_sections
from stillroom.text.chunking.tokens import TokenRuler
from stillroom.text.interfaces import Chunker

__all__ = ["Heading"]


class Heading(Chunker):
    """Splits at headings first."""

    paper: ClassVar[str] = ""
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
        return split_sections(
            document, ruler, self.size, min_size=self.min_size, overlap=self.overlap
        )
