"""Tables in a document's text, and the header row that a passage from their middle needs.

Knows Markdown's tables (which office files, pages and workbooks are written as) and files that are
one table (CSV). Spans are untouched: a header is told beside a passage, never put into its text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.records import Document

__all__ = ["MAX_HEADER", "Table", "find_header", "find_tables"]

MAX_HEADER = 1_000
"""Characters of a header row that is repeated; a longer one would be most of a passage."""

_DELIMITER = re.compile(
    # possessive, since a line of nothing but spaces else takes time by the square of their number
    r"(?<![^\r\n])[ \t]*+(?:\|[ \t]*+)?:?-++:?[ \t]*+(?:\|[ \t]*+:?-++:?[ \t]*+)*+"
    r"(?:\|[ \t]*+)?(?![^\r\n])"
)
_ROWS = re.compile(r"(?:\r\n|\n|\r)[^\r\n]*\|[^\r\n]*")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class Table:
    """A table: where its rows begin and end, and its header row, empty where there is none."""

    start: int
    end: int
    header: str


def find_tables(document: Document) -> list[Table]:
    """Return the tables of a document in order; ``start`` is the end of the header row."""
    text = document.text
    if document.metadata.get("is_code"):
        return []
    if document.metadata.get("is_table"):
        first = re.search(r"[\r\n]|\Z", text)
        end = first.start() if first else len(text)
        return [Table(end, len(text), _header(text[:end]))]
    tables: list[Table] = []
    if "|" not in text:
        return tables
    for match in _DELIMITER.finditer(text):
        if "|" not in match.group() or (tables and match.start() < tables[-1].end):
            continue
        before = match.start() - (2 if text.startswith("\r\n", match.start() - 2) else 1)
        row = _line_before(text, before)
        if "|" not in row:
            continue
        end = match.end()
        while rows := _ROWS.match(text, end):
            end = rows.end()
        tables.append(Table(before, end, _header(row)))
    return tables


def find_header(tables: Sequence[Table], position: int) -> str:
    """Return the header row of the table that a position is in the rows of, or an empty string."""
    at = bisect_right(tables, position - 1, key=lambda table: table.start) - 1
    return tables[at].header if at >= 0 and position < tables[at].end else ""


def _line_before(text: str, end: int) -> str:
    """Return the line that ends at a position; of a very long one its end."""
    low = max(end - 2 * MAX_HEADER, 0)
    begin = max(text.rfind("\n", low, end), text.rfind("\r", low, end)) + 1
    return text[max(begin, low) : end] if end > 0 else ""


def _header(row: str) -> str:
    """Return a header row as it is repeated: empty where it names nothing or is too long."""
    row = row.strip()
    return row if len(row) <= MAX_HEADER and _LETTER.search(row) else ""
