"""HTML: the main text of a page, with each piece's bytes.

Headings, lists, tables and code become Markdown; navigation, scripts and link lists are left out
and counted in ``boilerplate_characters``.
"""

from __future__ import annotations

import re
from typing import ClassVar

from typing_extensions import override

from stillroom.records import Document
from stillroom.text.assembly import Assembly
from stillroom.text.decoding import decode
from stillroom.text.method import Parser, Source
from stillroom.text.webpage import add_page

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
    def parse(self, data: bytes, source: Source) -> Document:
        declared = _CHARSET.search(data[:4096])
        decoded = decode(
            data,
            source.path,
            declared=declared.group(1).decode("ascii", "replace") if declared else "",
        )
        assembly = Assembly(source)
        facts = add_page(decoded, assembly)
        metadata = {**decoded.metadata, "boilerplate_characters": facts.boilerplate_characters}
        if facts.hidden_characters:
            metadata["hidden_characters_left_out"] = facts.hidden_characters
        if facts.language:
            metadata["declared_language"] = facts.language
        return assembly.finish(
            title=facts.title,
            metadata=metadata,
            expected="text in the page itself (this one may be built by scripts)",
        )
