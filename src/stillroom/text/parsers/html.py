"""HTML pages: the main content, each block with its byte range.

Headings, lists, tables and code become Markdown; navigation, scripts and link lists are left out
and counted in ``boilerplate_characters``.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder
from stillroom.text.documents.main_content import extract_main_content
from stillroom.text.documents.page_marks import collect_page_marks
from stillroom.text.documents.statements import MarkCollector
from stillroom.text.encoding import decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Html"]

_CHARSET = re.compile(
    rb"""<(?:meta|\?xml)[^>]{0,300}?(?:charset|encoding)\s*=\s*["']?([\w.:-]+)""", re.I
)


class Html(Parser):
    """HTML and XHTML pages."""

    suffixes: ClassVar[tuple[str, ...]] = (".html", ".htm", ".xhtml")
    media_type: ClassVar[str] = "text/html"
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        declared = _CHARSET.search(data[:4096])
        decoded = decode_text(
            data,
            source.path,
            declared=declared.group(1).decode("ascii", "replace") if declared else "",
        )
        assembly, marks = DocumentBuilder(source), MarkCollector()
        collect_page_marks(decoded.text, marks)
        facts = extract_main_content(decoded, assembly)
        metadata: dict[str, Any] = {
            **decoded.metadata,
            "boilerplate_characters": facts.boilerplate_characters,
        }
        if facts.hidden_characters:
            metadata["hidden_characters_left_out"] = facts.hidden_characters
        if facts.language:
            metadata["declared_language"] = facts.language
        metadata |= marks.to_metadata()
        return assembly.finish(
            title=facts.title,
            metadata=metadata,
            expected="text in the page itself (this one may be built by scripts)",
        )
