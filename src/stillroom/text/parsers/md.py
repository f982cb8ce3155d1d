"""Markdown: the text is the file, byte for byte; headings are found by a CommonMark parser.

A ``#`` within a code fence is no heading; a front matter's ``title`` is the title.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

from markdown_it import MarkdownIt
from typing_extensions import override

from stillroom.records import Document, Heading
from stillroom.text.assembly import from_source_text, require_text
from stillroom.text.decoding import decode, make_anchors
from stillroom.text.method import Parser, Source

__all__ = ["Md"]

_FRONT = re.compile(
    r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_LINE = re.compile(r"\r\n|\r|\n")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)")
_MARKS = re.compile(r"[*_`]+(?=\S)|(?<=\S)[*_`]+|<[^<>]{1,200}>|\{#[^{}]*\}$")


class Md(Parser):
    """Markdown files."""

    suffixes: ClassVar[tuple[str, ...]] = (".md", ".markdown", ".mdx", ".mdown")
    media_type: ClassVar[str] = "text/markdown"

    @override
    def parse(self, data: bytes, source: Source) -> Document:
        decoded = decode(data, source.path)
        front = _FRONT.match(decoded.text)
        begin = front.end() if front else 0
        title = _TITLE.search(front.group(1)) if front else None
        document = from_source_text(
            decoded.text,
            make_anchors(decoded),
            source,
            headings=list(_headings(decoded.text, begin)),
            title=title.group(1).strip("\"'") if title else "",
            metadata=decoded.metadata,
        )
        return require_text(document)


def _headings(text: str, begin: int) -> Iterator[Heading]:
    """Yield the headings from ``begin`` on; only blocks are parsed, inline text is not."""
    starts = [begin, *(match.end() for match in _LINE.finditer(text, begin))]
    parser = MarkdownIt("commonmark").disable(["inline", "text_join"])
    tokens = parser.parse(text[begin:])
    for token, content in pairwise(tokens):
        if token.type == "heading_open" and token.map and content.content.strip():
            title = _MARKS.sub("", _LINK.sub(r"\1", content.content))
            title = " ".join(title.split())[:300] or content.content.strip()[:300]
            yield Heading(starts[token.map[0]], int(token.tag[1:]), title)
