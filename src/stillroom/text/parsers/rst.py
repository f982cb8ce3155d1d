"""reStructuredText files as text, byte for byte, with headings from underlines.

Heading levels follow the order in which styles of underline (and overline) first appear, as in
docutils. Directives are kept unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from typing_extensions import override

from stillroom.records import Document, Heading
from stillroom.text.documents.builder import build_document, require_text
from stillroom.text.encoding import build_anchors, decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Rst"]

_RULE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}[ \t]*")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_ROLE = re.compile(r":[a-zA-Z:]+:`([^`<]+?)(?:\s*<[^`>]*>)?`|[`*]+")


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
            headings=list(_headings(decoded.text)),
            metadata=decoded.metadata,
        )
        return require_text(document)


def _headings(text: str) -> Iterator[Heading]:
    lines = [(match.start(), match.group().rstrip()) for match in _LINE.finditer(text)]
    styles: list[str] = []
    used = -1
    for number in range(1, len(lines)):
        start, title = lines[number - 1]
        below = lines[number][1]
        if number - 1 <= used or not title.strip() or not _RULE.fullmatch(below):
            continue
        above = lines[number - 2][1] if number >= 2 else ""
        over = above == below and number - 2 > used
        if title[0].isspace() and not over:
            continue
        if (
            _RULE.fullmatch(title)
            or len(below) < len(title.strip())
            or (above.strip() and not over)
        ):
            continue
        style = below[0] + ("^" if over else "")
        if style not in styles:
            styles.append(style)
        used = number
        name = " ".join(_ROLE.sub(r"\1", title).split())[:300]
        yield Heading(lines[number - 2][0] if over else start, styles.index(style) + 1, name)
