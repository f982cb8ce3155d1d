"""Quotes of passages: the parts that stand in the document, without the marks that a parser wrote.

A parser that turns markup, an office file or a page into text writes marks of its own, such as the
dash of a list item and the bars of a table. They stand in no document, so no quote holds them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise, zip_longest
from typing import TYPE_CHECKING, Any

from stillroom.text.line_wrapping import find_soft_breaks

if TYPE_CHECKING:
    from stillroom.records import Document, Passage

__all__ = ["count_citations", "describe_quote", "find_verbatim_parts", "lay_out_quotes"]

# As parsers write it.
_ITEM_MARK = re.compile(r"[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]+")
_TABLE_RULE = re.compile(r"[ \t]*\|?(?:[ \t]*:?-{3,}:?[ \t]*\|)+[ \t]*")
_FENCE = re.compile(r"[ \t]*(?:`{3,}|~{3,})[ \t]*\w*[ \t]*")
_FENCED = re.compile(r"^[ \t]*(`{3,})$.*?^[ \t]*\1$", re.DOTALL | re.MULTILINE)
_CELL_BORDER = re.compile(r"(?<!\\)\||\\(?=\|)")
_CELL_STARTS = re.compile(r"(?:(?<!\\)\|[ \t]*)+\Z")
_COLONS = (":", "：")
_GAP = "[…]"
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
        if items and (item := _ITEM_MARK.match(line)):
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


def lay_out_quotes(
    texts: Sequence[str], found: Sequence[Sequence[dict[str, Any]]]
) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """Yield each quote, what stands before it, and whether its citation stands after it.

    Cells of a row, empty ones too, are parted by semicolons, or by a blank after a colon, and not
    at a bar within; the items of a list are parted by the line and mark of the document. Others
    stand on lines of their own, but for the parts of a line. Those that follow each other in a
    passage have one citation, after the last: the others ``continues``. Before one that
    ``is_apart`` text of the passage is left out, which a mark says. The ``number`` of a quote is
    that of its text, from 1.
    """
    quotes = [quote for parts in found for quote in parts]
    cited = [is_cited for parts in found for is_cited in _find_citations(parts)]
    opened = [
        mark for parts in found if parts for mark in ("", *_find_separators(texts, parts)[:-1])
    ]
    groups = [number for number, parts in enumerate(found) for _ in parts]
    for place in range(1, len(quotes)):
        before, quote = quotes[place - 1 : place + 1]
        if not cited[place - 1]:
            continue
        opened[place] = "\n"
        if before["number"] != quote["number"] or before["end"] > quote["start"]:
            continue
        before["continues"], cited[place - 1] = True, False
        text = texts[quote["number"] - 1]
        items = [_find_item_mark(text, one["start"]) for one in (before, quote)]
        line = text.rfind("\n", 0, quote["start"]) + 1
        between = text[before["end"] : line if items[1] else quote["start"]]
        if groups[place - 1] == groups[place] and "\n" not in between:
            opened[place] = " "
        elif any(map(str.isalnum, between)) and not _is_row(text, quote["start"]):
            quote["is_apart"] = True
            opened[place] = f"\n{_GAP}\n" if all(items) else f"\n{_GAP} "
        for one, mark in zip((place - 1, place), items, strict=True):
            if all(items) and not opened[one].endswith(mark):
                opened[one] += mark
    for quote, mark, is_cited in zip(quotes, opened, cited, strict=True):
        yield quote, mark + "; " * _count_empty_cells(texts[quote["number"] - 1], quote), is_cited


def _count_empty_cells(text: str, quote: Mapping[str, Any]) -> int:
    """Return the number of empty cells before a cell: they keep its value below its header."""
    line = text.rfind("\n", 0, quote["start"]) + 1
    starts = _CELL_STARTS.search(text, line, quote["start"])
    return starts[0].count("|") - 1 if starts else 0


def _is_row(text: str, start: int) -> bool:
    """Return whether a place stands in a row of a table: rows are read one by one."""
    return text[text.rfind("\n", 0, start) + 1 :].lstrip().startswith("|")


def _find_item_mark(text: str, start: int) -> str:
    """Return the mark of the list item that begins before a place in its line; empty if none."""
    mark = text[text.rfind("\n", 0, start) + 1 : start]
    return mark.lstrip() if _ITEM_MARK.fullmatch(mark) else ""


def _find_separators(texts: Sequence[str], quotes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what follows each quote if no citation does: in a list the mark of the next item.

    That is the passage's own, with the number or the level of the item.
    """
    separators, level = list[str](), 0
    for quote, following in pairwise(quotes):
        text = texts[quote["number"] - 1][quote["end"] : following["start"]]
        mark = text.rpartition("\n")[2]
        indent = len(mark) - len(mark.lstrip())
        if not separators or not separators[-1].startswith("\n"):
            level = indent
        mark = mark[min(level, indent) :] if _ITEM_MARK.fullmatch(mark) else ""
        is_below = quote.get("continues") and "\n" in text
        apart = " " if quote["text"].endswith(_COLONS) else "; "
        # The backslash before a bar within a cell is the parser's.
        inner = text[:-1] if text.strip(" \t") == "\\" else apart
        separators.append(f"\n{mark}" if is_below else inner)
    return [*separators, ""]


def _find_citations(quotes: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Return whether a citation follows each quote of a span: not between those of one place.

    Nor is one between the items of a list.
    """
    return [
        not quote.get("continues")
        and (
            following is None
            or bool(quote["is_exact"])
            or any(quote[name] != following[name] for name in ("number", "byte_start", "byte_end"))
        )
        for quote, following in zip_longest(quotes, quotes[1:])
    ]


def count_citations(quotes: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of places that the quotes of a span cite."""
    return sum(_find_citations(quotes))
