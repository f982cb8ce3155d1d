"""Plain text and source code, byte for byte.

The encoding is detected by byte order mark, then UTF-8, then statistics; see ``encoding``.
Functions and classes of source code are sections, so that it can be split between them, and so are
the chapters, articles and the like of other texts.
"""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from stillroom.records import Document
from stillroom.text.code import CODE_SUFFIXES, detect_code_language, find_definitions, is_code
from stillroom.text.documents.builder import build_document, require_text
from stillroom.text.documents.numbered_headings import find_numbered_headings
from stillroom.text.encoding import build_anchors, decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Txt"]


class Txt(Parser):
    """Text files of any encoding, and source code."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".text", ".log", *CODE_SUFFIXES)
    media_type: ClassVar[str] = "text/plain"

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        decoded = decode_text(data, source.path)
        metadata = dict(decoded.metadata)
        headings = []
        title = ""
        if is_code(source.path, decoded.text):
            metadata["is_code"] = True
            language = detect_code_language(source.path, decoded.text)
            if language:
                metadata["programming_language"] = language
                headings = list(find_definitions(decoded.text, language))
            title = source.stem
        else:
            headings = find_numbered_headings(decoded.text)
            title = source.stem if len(headings) > 1 else ""  # one chapter may name its file
        document = build_document(
            decoded.text,
            build_anchors(decoded),
            source,
            headings=headings,
            title=title,
            metadata=metadata,
        )
        return require_text(document)
