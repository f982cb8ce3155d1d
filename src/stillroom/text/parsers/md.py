"""Markdown files as text, byte for byte, with headings from a CommonMark parser.

A ``#`` within a code fence is no heading. The metadata field ``front_matter`` has the typed fields
of the front matter; its ``title`` is the document's title, and its ``license`` joins that of the
origin. The text begins below it, unless it cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

from markdown_it import MarkdownIt
from typing_extensions import override

from stillroom.records import Document, Heading, Origin, combine_origins
from stillroom.text.documents.builder import build_document, read_front_matter, require_text
from stillroom.text.documents.statements import MarkCollector
from stillroom.text.encoding import build_anchors, decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Md"]

_LINE = re.compile(r"\r\n|\r|\n")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)")
_MARKS = re.compile(  # "max_size" has none
    r"[*`]+(?=\S)|(?<=\S)[*`]+|(?<!\w)_+(?=\S)|(?<=\S)_+(?!\w)|<[^<>]{1,200}>|\{#[^{}]*\}$"
)


class Md(Parser):
    """Markdown files."""

    suffixes: ClassVar[tuple[str, ...]] = (".md", ".markdown", ".mdx", ".mdown")
    media_type: ClassVar[str] = "text/markdown"

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        decoded = decode_text(data, source.path)
        front = read_front_matter(decoded.text)
        metadata: dict[str, Any] = dict(decoded.metadata)
        if front.fields:
            metadata["front_matter"] = front.fields
            marks = MarkCollector()
            marks.add_property("the front matter", "", front.fields)
            metadata |= marks.to_metadata()
            decoded = decoded.drop_start(front.end)
            both = combine_origins([source.origin, Origin(license=front.license)])
            source = replace(source, origin=replace(source.origin, license=both.license))
        if front.error:
            metadata["front_matter_error"] = front.error
        document = build_document(
            decoded.text,
            build_anchors(decoded),
            source,
            headings=list(_headings(decoded.text, 0 if front.fields else front.end)),
            title=str(front.fields.get("title", "")),
            metadata=metadata,
        )
        return require_text(document)


def _headings(text: str, begin: int) -> Iterator[Heading]:
    """Yield the headings from ``begin`` on, parsing blocks only."""
    starts = [begin, *(match.end() for match in _LINE.finditer(text, begin))]
    parser = MarkdownIt("commonmark").disable(["inline", "text_join"])
    tokens = parser.parse(text[begin:])
    for token, content in pairwise(tokens):
        if token.type == "heading_open" and token.map and content.content.strip():
            title = _MARKS.sub("", _LINK.sub(r"\1", content.content))
            title = " ".join(title.split())[:300] or content.content.strip()[:300]
            yield Heading(starts[token.map[0]], int(token.tag[1:]), title)
