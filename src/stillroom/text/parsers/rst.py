"""reStructuredText files as text, byte for byte, with headings from underlines.

Directives are kept unchanged.
"""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from stillroom.records import Document
from stillroom.text.documents.builder import build_document, require_text
from stillroom.text.documents.underlined_headings import find_underlined_headings
from stillroom.text.encoding import build_anchors, decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Rst"]


class Rst(Parser):
    """reStructuredText files."""

    suffixes: ClassVar[tuple[str, ...]] = (".rst",)
    media_type: ClassVar[str] = "text/x-rst"

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        decoded = decode_text(data, source.path)
        document = build_document(
            decoded.text,
            build_anchors(decoded),
            source,
            headings=list(find_underlined_headings(decoded.text)),
            metadata=decoded.metadata,
        )
        return require_text(document)
