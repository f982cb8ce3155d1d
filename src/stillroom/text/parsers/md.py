"""Markdown: the text is the file, byte for byte; headings are found by a CommonMark parser.

A ``#`` within a code fence is no heading. The fields of a front matter are in the metadata, under
``front_matter``, typed; its ``title`` is the title.
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
from stillroom.text.front_matter import read_front_matter
from stillroom.text.method import Parser, Source

__all__ = ["Md"]

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
        front = read_front_matter(decoded.text)
        metadata = dict(decoded.metadata)
        if front.fields:
            metadata["front_matter"] = front.fields
        if front.error:
            metadata["front_matter_error"] = front.error
        document = from_source_text(
            decoded.text,
            make_anchors(decoded),
            source,
            headings=list(_headings(decoded.text, front.end)),
            title=str(front.fields.get("title", "")),
            metadata=metadata,
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
