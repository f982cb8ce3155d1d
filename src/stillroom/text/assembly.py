"""Assembly: text that is put together block by block, each block tied to its bytes.

For formats whose text is not the file's own bytes. Headings, lists, tables and code are written as
Markdown, so that every chunker and model meets one notation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stillroom.errors import DataError
from stillroom.records import Anchor, Document, Heading
from stillroom.text.method import Source

__all__ = ["Assembly", "from_source_text", "render_table", "require_text", "spread_row"]

_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_COLUMNS = 512
_WIDEST = 64


class Assembly:
    """A document in the making."""

    def __init__(self, source: Source) -> None:
        """Begin an empty document of ``source``."""
        self.source = source
        self._parts: list[str] = []
        self._length = 0
        self._anchors: list[Anchor] = []
        self._headings: list[Heading] = []

    @property
    def length(self) -> int:
        """How many characters there are so far."""
        return self._length

    @property
    def first_heading(self) -> str:
        """The title of the first heading, or an empty string."""
        return self._headings[0].title if self._headings else ""

    def add(
        self,
        text: str,
        span: tuple[int, int] | None = None,
        *,
        page: int = 0,
        label: str = "",
        is_exact: bool = False,
    ) -> None:
        """Append text, with the byte range that it comes from.

        Raises:
            DataError: If the document grows beyond the limit.
        """
        if not text:
            return
        start, self._length = self._length, self._length + len(text)
        if self._length > self.source.limits.text_characters:
            raise DataError(
                f"the document holds more than {self.source.limits.text_characters} characters",
                code="document.too-large",
                where=self.source.path,
                expected="a smaller document, or a higher limit text_characters",
                next="split the file",
            )
        self._parts.append(text)
        if span is None:
            return
        anchor = Anchor(start, self._length, *span, page, label, is_exact)
        last = self._anchors[-1] if self._anchors else None
        if last and not is_exact and replace(last, start=start, end=self._length) == anchor:
            self._anchors[-1] = replace(last, end=self._length)
        else:
            self._anchors.append(anchor)

    def gap(self, text: str = "\n\n") -> None:
        """Append white space between blocks, unless the document is still empty."""
        if self._length:
            self.add(text)

    def heading(self, level: int, title: str, *, at: int | None = None) -> None:
        """Note that a section starts here, or at a position; the caller adds its text."""
        title = " ".join(title.split())[:300]
        if title:
            start = self._length if at is None else at
            self._headings.append(Heading(start, max(level, 1), title))

    def finish(
        self, *, title: str = "", metadata: Mapping[str, Any] | None = None, expected: str = ""
    ) -> Document:
        """Return the document.

        Args:
            title: What the file calls itself; else its first heading, else the file's name.
            metadata: What else a reader should know.
            expected: Why there may be no text, for the error.

        Raises:
            DataError: If there is no text.
        """
        document = from_source_text(
            "".join(self._parts),
            self._anchors,
            self.source,
            headings=self._headings,
            title=title,
            metadata=metadata,
        )
        return require_text(document, expected)


def from_source_text(
    text: str,
    anchors: Iterable[Anchor],
    source: Source,
    *,
    headings: Sequence[Heading] = (),
    title: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Document:
    """Return a document of finished text; lone surrogates become U+FFFD and are counted."""
    facts = dict(metadata or {})
    broken = len(_SURROGATE.findall(text))
    if broken:
        text = _SURROGATE.sub("\ufffd", text)
        facts["replaced_characters"] = broken
    name = _SURROGATE.sub("\ufffd", " ".join(title.split())[:300])
    first = next((heading.title for heading in headings if heading.level == 1), "")
    return Document(
        path=source.path,
        digest=source.digest,
        media_type=source.media_type,
        text=text,
        anchors=tuple(anchors),
        headings=tuple(
            replace(heading, title=_SURROGATE.sub("\ufffd", heading.title)) for heading in headings
        ),
        title=name or first or source.stem,
        origin=source.origin,
        metadata=facts,
    )


def require_text(document: Document, expected: str = "") -> Document:
    """Return the document, refusing one without text.

    Raises:
        DataError: If the text is empty or white space.
    """
    if document.text.strip():
        return document
    raise DataError(
        "the document holds no text",
        code="document.no-text",
        where=document.path,
        expected=expected or "some text",
        next="leave the file out, or replace it by one with text",
    )


def spread_row(cells: Sequence[tuple[str, int]]) -> list[str]:
    """Return a row of one text a column, of cells that span several columns.

    A cell is repeated in each column that it spans, so that every column keeps its header; one that
    spans the whole row, or more than 64 columns, stands once.
    """
    if len(cells) == 1:
        return [cells[0][0], *[""] * (min(cells[0][1], _MAX_COLUMNS) - 1)]
    row: list[str] = []
    for text, width in cells:
        row += [text] * width if width <= _WIDEST else [text, *[""] * (width - 1)]
    return row[: _MAX_COLUMNS + 1]


def render_table(rows: Sequence[Sequence[str]], columns: Sequence[int] | None = None) -> str:
    """Return rows as a Markdown table; the first row is the header.

    Cells are made one line each, bars are escaped, short rows are filled, empty rows are left out.

    Args:
        rows: The texts of the cells.
        columns: Which columns to write; by default those that are not empty.
    """
    cells = [
        [" ".join(cell.split()).replace("|", "\\|") for cell in row[:_MAX_COLUMNS]] for row in rows
    ]
    cells = [row for row in cells if any(row)]
    width = max((len(row) for row in cells), default=0)
    cells = [[*row, *[""] * (width - len(row))] for row in cells]
    used = columns or [column for column in range(width) if any(row[column] for row in cells)]
    if not used or not cells:
        return ""
    width = max(width, max(used) + 1)
    cells = [[*row, *[""] * (width - len(row))] for row in cells]
    lines = ["| " + " | ".join(row[column] for column in used) + " |" for row in cells]
    lines.insert(1, "|" + " --- |" * len(used))
    return "\n".join(lines)
