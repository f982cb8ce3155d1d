"""Quotes of passages: the parts that stand in the document, without the marks that a parser wrote.

A parser that turns markup, an office file or a page into text writes marks of its own, such as the
dash of a list item and the bars of a table. They stand in no document, so no quote holds them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from stillroom.text.line_wrapping import find_soft_breaks

if TYPE_CHECKING:
    from stillroom.records import Document, Passage

__all__ = ["ITEM_MARK", "describe_quote", "find_verbatim_parts"]

ITEM_MARK = re.compile(r"[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]+")
"""The mark of a list item, as parsers write it."""
_TABLE_RULE = re.compile(r"[ \t]*\|?(?:[ \t]*:?-{3,}:?[ \t]*\|)+[ \t]*")
_FENCE = re.compile(r"[ \t]*(?:`{3,}|~{3,})[ \t]*\w*[ \t]*")
_FENCED = re.compile(r"^[ \t]*(`{3,})$.*?^[ \t]*\1$", re.DOTALL | re.MULTILINE)
_CELL_BORDER = re.compile(r"(?<!\\)\||\\(?=\|)")
_MARKUP_TYPES = frozenset({"text/html", "application/docbook+xml"})
Span = tuple[int, int]


def find_verbatim_parts(passage: Passage, document: Document, start: int, end: int) -> list[Span]:
    """Return the parts of a passage's text[start:end] that stand in the document, in order.

    Cut out are characters that come from no byte of the file, and, where the text was not taken
    over as it stands, the marks of list items, tables and code. Of white space, only an empty line
    that a parser wrote cuts: what stood between two blocks may have been left out.
    """
    if not document.anchors:  # nothing is known of its bytes
        return [(start, end)]
    text, parts, begin = passage.text, list[Span](), start
    for first, last in [*_find_marks(passage, document, start, end), (end, end)]:
        piece = text[begin:first]
        if any(map(str.isalnum, piece)):
            left = begin + len(piece) - len(piece.lstrip())
            parts.append((left, left + len(piece.strip())))
        begin = max(begin, last)
    return parts


def _find_marks(passage: Passage, document: Document, start: int, end: int) -> list[Span]:
    """Return the spans of marks within text[start:end], in order; they may overlap."""
    text, place, marks, rendered = passage.text, start, list[Span](), list[Span]()
    items = document.media_type != "application/pdf"  # where dashes and numbers are on the page
    begin = bisect_right(document.anchors, passage.start + start, key=lambda one: one.start)
    for anchor in islice(document.anchors, max(begin - 1, 0), None):
        if anchor.start >= passage.start + end:
            break
        left = max(anchor.start - passage.start, start)
        right = min(anchor.end - passage.start, end)
        if left >= right:
            continue
        marks += _find_unanchored(text, place, left)
        place = right
        if not anchor.is_exact:
            rendered.append((left, right))
    marks += _find_unanchored(text, place, end)
    for left, right in rendered:
        marks += [
            (max(first, left), min(last, right))
            for first, last in _find_rendered(text, left, right, items=items)
            if first < right and last > left
        ]
    return sorted(marks)


def _find_unanchored(text: str, start: int, end: int) -> list[Span]:
    gap = text[start:end]
    return [(start, end)] if gap.strip() or gap.count("\n") > 1 else []


def _find_rendered(text: str, start: int, end: int, *, items: bool) -> Iterator[Span]:
    """Yield the marks in the lines of text[start:end]: of list items if asked, tables and code."""
    first = text.rfind("\n", 0, start) + 1
    while first < end:
        last = text.find("\n", first)
        last = len(text) if last < 0 else last
        line = text[first:last]
        if _FENCE.fullmatch(line):
            yield first, last
        if items and (item := ITEM_MARK.match(line)):
            yield first, first + item.end()
        if line.lstrip().startswith("|") or line.rstrip().endswith("|"):
            if _TABLE_RULE.fullmatch(line):
                yield first, last
            yield from ((first + m.start(), first + m.end()) for m in _CELL_BORDER.finditer(line))
        first = last + 1


def describe_quote(
    passage: Passage, document: Document, number: int, start: int, end: int
) -> dict[str, Any]:
    """Return a quote of a passage as JSON values.

    Returns:
        ``number``, ``passage_id``, ``path``, ``start``, ``end``, ``text``; ``headings``, ``pages``,
            ``byte_start``, ``byte_end`` and ``is_exact`` of the quote's own place; ``soft_breaks``,
            the positions in ``text`` of line feeds that wrap prose, if it has any.
    """
    location = document.locate(passage.start + start, passage.start + end)
    text = passage.text[start:end]
    soft_breaks = sorted(
        {*find_soft_breaks(text), *_find_markup_breaks(document, passage.start + start, text)}
    )
    return {
        "number": number,
        "passage_id": passage.id,
        "path": location.path,
        "start": start,
        "end": end,
        "headings": list(document.heading_path(passage.start + start)),
        "pages": list(location.pages),
        "byte_start": location.byte_start,
        "byte_end": location.byte_end,
        "is_exact": location.is_exact,
        "text": text,
        **({"soft_breaks": soft_breaks} if soft_breaks else {}),
    }


def _find_markup_breaks(document: Document, start: int, text: str) -> Iterator[int]:
    """Yield the positions of line feeds that a page's or manual's source has and no reader sees.

    That of a ``<br>`` comes from other bytes, and preformatted text is between fences.
    """
    if document.media_type not in _MARKUP_TYPES or "\n" not in text:
        return
    fenced = [match.span() for match in _FENCED.finditer(document.text)]
    for match in re.finditer("\n", text):
        place = start + match.start()
        number = bisect_right(document.anchors, place, key=lambda anchor: anchor.start) - 1
        anchor = document.anchors[number] if number >= 0 else None
        is_own = anchor is not None and anchor.is_exact and place < anchor.end
        if is_own and not any(first <= place < last for first, last in fenced):
            yield match.start()
