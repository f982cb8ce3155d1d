"""OpenDocument texts, spreadsheets and presentations (ISO/IEC 26300).

Headings, lists, tables, notes and comments become Markdown; slides and sheets are labeled. A cell
that spans several rows or columns is repeated in each, unless it spans a whole row. Tracked
deletions, hidden text, pictures and generated tables of contents are left out and counted. Anchors
have the bytes of the archive member.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder, expand_row, render_table
from stillroom.text.documents.office import (
    CheckedArchive,
    make_encrypted_error,
    open_archive,
    parse_bounded,
    parse_xml,
    unreadable_as_error,
)
from stillroom.text.documents.statements import MarkCollector
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Odf"]

_TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
_STYLE = "{urn:oasis:names:tc:opendocument:xmlns:style:1.0}"
_TABLE = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
_OFFICE = "{urn:oasis:names:tc:opendocument:xmlns:office:1.0}"
_DRAW = "{urn:oasis:names:tc:opendocument:xmlns:drawing:1.0}"
_PRESENTATION = "{urn:oasis:names:tc:opendocument:xmlns:presentation:1.0}"
_CONTENT = "content.xml"
_INDEXES = frozenset({"table-of-content", "alphabetical-index", "illustration-index"})
_BLOCKS = frozenset({"p", "h", "list-item", "table-cell"})
_BLOCK_ROWS = 20
_MAX_COLUMNS = 512
_MAX_ROWS = 100_000
_MAX_REPEATS = 1 << 20  # the rows and columns of a sheet
_MAX_SPACES = 100
_FAMILIES = {"span": "text", "p": "paragraph", "h": "paragraph"}
_Style = tuple[str, str]  # family and name


class Odf(Parser):
    """OpenDocument texts, spreadsheets and presentations."""

    suffixes: ClassVar[tuple[str, ...]] = (".odt", ".ott", ".ods", ".ots", ".odp", ".otp")
    media_type: ClassVar[str] = "application/vnd.oasis.opendocument.text"
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        archive = open_archive(data, source.path, source.limits, required=_CONTENT)
        manifest = "META-INF/manifest.xml"
        if manifest in archive and b"encryption-data" in archive.read(manifest):
            raise make_encrypted_error(source.path)
        with unreadable_as_error(source.path):
            content = parse_xml(archive.read(_CONTENT))
            writer = _BlockWriter(
                DocumentBuilder(source),
                archive.span(_CONTENT),
                _list_displays(archive, content),
            )
            body = content.find(f"{_OFFICE}body")
            for part in body if body is not None else ():
                writer.write_part(part, source.limits.pages)
            writer.write_notes()
            title = _title(archive)
            marks = MarkCollector()
            marks.add_archive(archive)
            _read_margins(archive, marks)
        metadata: dict[str, Any] = {}
        if cut := writer.counts.pop("cut", 0):
            metadata["rows_cut_at_column"] = {str(_MAX_COLUMNS): cut}
        metadata |= {f"{name}_left_out": count for name, count in writer.counts.items() if count}
        metadata |= marks.to_metadata()
        return writer.assembly.finish(
            title=title, metadata=metadata, expected="text beside pictures"
        )


class _BlockWriter:
    """Adds the blocks of a document, with notes and comments at its end."""

    def __init__(
        self, assembly: DocumentBuilder, span: tuple[int, int], displays: dict[_Style, str]
    ) -> None:
        self.assembly, self.counts = assembly, Counter[str]()
        self._displays = displays
        self._place: dict[str, Any] = {"span": span, "label": _CONTENT}
        self._notes: dict[str, list[str]] = {"Footnotes": [], "Comments": []}
        self._was_item = False

    def write_part(self, part: Any, most: int) -> None:
        """Add a text, a workbook or a presentation."""
        kind = _name(part)
        if kind == "spreadsheet":
            for number, sheet in enumerate(part.iter(f"{_TABLE}table")):
                if number < most:
                    self._write_sheet(sheet)
                else:
                    self.counts["sheets"] += 1
        elif kind == "presentation":
            for number, page in enumerate(part.iter(f"{_DRAW}page"), 1):
                if number > most:
                    self.counts["slides"] += 1
                    continue
                self._place |= {"page": number, "label": f"slide {number}"}
                self._write_blocks(page)
        else:
            self._write_blocks(part)

    def write_notes(self) -> None:
        """Add footnotes and comments as sections of their own."""
        for title, lines in self._notes.items():
            self.assembly.add_list(title, lines, **self._place)

    def _write_blocks(self, parent: Any, depth: int = 0) -> None:
        for child in parent:
            name = _name(child)
            if name == "h":
                self._add_heading(child, parse_bounded(child.get(f"{_TEXT}outline-level"), 1, 6))
            elif name == "p":
                self._add(self._words(child))
            elif name == "list":
                self._write_list(child, depth)
            elif name == "table":
                self._add(render_table(list(self._rows(child))))
            elif name == "tracked-changes" or child.get(f"{_TEXT}display") == "none":  # a section
                kind = "deleted" if name == "tracked-changes" else "hidden"
                blocks = child.iter("{*}p", "{*}h")
                self.counts[f"{kind}_characters"] += sum(map(_count_characters, blocks))
            elif name in _INDEXES:
                self.counts["contents"] += 1
            elif name == "notes":
                self._write_slide_notes(child)
            elif name == "frame" and child.get(f"{_PRESENTATION}class") == "title":
                self._add_heading(child, 1)
            else:
                self.counts["pictures"] += name == "image"
                self._write_blocks(child, depth)

    def _write_list(self, parent: Any, depth: int) -> None:
        for item in parent:
            if _name(item) not in {"list-item", "list-header"}:
                continue
            is_first = True
            for child in item:
                if _name(child) == "list":
                    self._write_list(child, depth + 1)
                    continue
                text = self._words(child)
                if text:
                    self._add(("  " * depth + "- " if is_first else "") + text, is_item=True)
                    is_first = False

    def _write_slide_notes(self, parent: Any) -> None:
        texts = [self._words(paragraph) for paragraph in parent.iter(f"{_TEXT}p")]
        text = " ".join(paragraph for paragraph in texts if paragraph)
        self._add(f"Notes: {text}" if text else "")

    def _write_sheet(self, sheet: Any) -> None:
        title = " ".join(str(sheet.get(f"{_TABLE}name", "")).split())
        rows = list(self._rows(sheet))
        while rows and not any(rows[-1]):
            rows.pop()
        if not rows:
            return
        self.assembly.gap()
        self.assembly.heading(2, title)
        self.assembly.add(f"## {title}\n\n" if title else "", **self._place)
        lines = render_table(rows).split("\n")
        for first in range(0, len(lines), _BLOCK_ROWS):
            block = "\n".join(lines[first : first + _BLOCK_ROWS])
            self.assembly.add("\n" if first else "")
            self.assembly.add(block, **(self._place | {"label": f"sheet {title}"}))

    def _rows(self, table: Any) -> Iterator[list[str]]:
        above: list[str] = []
        total = 0
        for row in table.iter(f"{_TABLE}table-row"):
            if next(row.iterancestors(f"{_TABLE}table")) is not table:
                continue  # a table within a cell is that cell's text
            cells, down = self._cells(row, above)
            while cells and not cells[-1][0]:
                cells.pop()
            texts = expand_row(cells)
            times = parse_bounded(row.get(f"{_TABLE}number-rows-repeated"), 1, _MAX_REPEATS)
            if not cells:
                times = 1  # empty rows down to the sheet's last row
            self.counts["cut"] += times * (sum(width for _, width in cells) > _MAX_COLUMNS)
            for _ in range(min(times, _MAX_ROWS - total)):
                yield texts
            total += times
            above = [text if column in down else "" for column, text in enumerate(texts)]
        self.counts["rows"] += max(total - _MAX_ROWS, 0)

    def _cells(self, row: Any, above: list[str]) -> tuple[list[tuple[str, int]], set[int]]:
        """Return the texts of a row with their column spans, and the columns that continue below.

        A covered cell has the text of the cell that covers it from above.
        """
        cells: list[tuple[str, int]] = []
        down: set[int] = set()
        column = covered = 0
        for cell in row:
            name = _name(cell)
            if name not in {"table-cell", "covered-table-cell"}:
                continue
            times = parse_bounded(cell.get(f"{_TABLE}number-columns-repeated"), 1, _MAX_REPEATS)
            if name == "covered-table-cell":
                for _ in range(min(times, _MAX_COLUMNS)):
                    if covered:
                        covered -= 1
                        continue
                    text = above[column] if column < len(above) else ""
                    if text:
                        down.add(column)
                    cells.append((text, 1))
                    column += 1
                continue
            text = self._cell(cell)
            width = parse_bounded(cell.get(f"{_TABLE}number-columns-spanned"), 1, _MAX_COLUMNS)
            if parse_bounded(cell.get(f"{_TABLE}number-rows-spanned"), 1, _MAX_ROWS) > 1:
                down.update(range(column, column + width))
            covered = width - 1
            for _ in range(min(times, _MAX_COLUMNS + 1)):
                cells.append((text, width))
                column += width
        return cells, down

    def _cell(self, cell: Any) -> str:
        """Return the displayed text of a cell, or its value."""
        texts = [
            self._words(child) for child in cell if _name(child) in {"p", "h", "list", "table"}
        ]
        for comment in cell.iterchildren(f"{_OFFICE}annotation"):
            self._note("Comments", comment)
        shown = " ".join(text for text in texts if text)
        value = cell.get(f"{_OFFICE}value") or cell.get(f"{_OFFICE}date-value") or ""
        return shown or str(value)

    def _words(self, element: Any, *, is_hidden: bool = False) -> str:
        """Return the text of an element; notes and comments are collected for the end.

        A style that shows its text does so also within hidden text.
        """
        style = (_FAMILIES.get(_name(element), ""), element.get(f"{_TEXT}style-name"))
        display = self._displays.get(style, "")
        is_hidden = display == "none" or (is_hidden and not display)
        parts = [self._shown(element.text, is_hidden=is_hidden)]
        for child in element:
            name = _name(child)
            if is_hidden and name in {"s", "tab", "line-break", "note", "annotation"}:
                self.counts["hidden_characters"] += _count_characters(child)
            elif name == "s":
                parts.append(" " * parse_bounded(child.get(f"{_TEXT}c"), 1, _MAX_SPACES))
            elif name in {"tab", "line-break"}:
                parts.append("\t" if name == "tab" else "\n")
            elif name == "note":
                parts.append(f"[^{self._note('Footnotes', child)}]")
            elif name == "annotation":
                self._note("Comments", child)
            elif name:
                self.counts["pictures"] += name == "image"
                gap = "\n" if name in _BLOCKS else ""
                parts.append(gap + self._words(child, is_hidden=is_hidden) + gap)
            parts.append(self._shown(child.tail, is_hidden=is_hidden))
        lines = "".join(parts).split("\n")
        cleaned = [" ".join(line.split()) for line in lines]
        return "\n".join(line for line in cleaned if line)

    def _shown(self, text: str | None, *, is_hidden: bool) -> str:
        self.counts["hidden_characters"] += len(text or "") * is_hidden
        return "" if is_hidden else text or ""

    def _note(self, kind: str, element: Any) -> int:
        """Collect a note's text for the end of the document; return its number."""
        lines = self._notes[kind]
        bodies = [self._words(body) for body in element.iter(f"{_TEXT}p")]
        text = " ".join(" ".join(body.split()) for body in bodies if body)
        number = len(lines) + 1
        if text:
            lines.append(f"- [^{number}]: {text}" if kind == "Footnotes" else f"- {text}")
        return number

    def _add_heading(self, element: Any, level: int) -> None:
        text = " ".join(self._words(element).split())
        if text:
            self.assembly.gap()
            self.assembly.heading(level, text)
            self.assembly.add(f"{'#' * level} {text}", **self._place)
            self._was_item = False

    def _add(self, text: str, *, is_item: bool = False) -> None:
        if text:
            self.assembly.gap("\n" if is_item and self._was_item else "\n\n")
            self.assembly.add(text, **self._place)
            self._was_item = is_item


def _name(element: Any) -> str:
    """Return an element's name without its namespace; empty for a comment."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _count_characters(element: Any) -> int:
    return sum(map(len, element.itertext()))


def _list_displays(archive: CheckedArchive, content: Any) -> dict[_Style, str]:
    """Return what each style itself says of display; empty for none.

    Automatic styles of styles.xml are of headers and footers; their names occur in the text, too.
    """
    roots = [content.find(f".//{_OFFICE}automatic-styles")]
    if "styles.xml" in archive:
        roots.insert(0, parse_xml(archive.read("styles.xml")).find(f"{_OFFICE}styles"))
    return {
        (style.get(f"{_STYLE}family"), name): properties.get(f"{_TEXT}display", "")
        for root in roots
        if root is not None
        for style in root.iterchildren(f"{_STYLE}style")
        if (name := style.get(f"{_STYLE}name"))
        for properties in style.iterchildren(f"{_STYLE}text-properties")
    }


def _read_margins(archive: CheckedArchive, marks: MarkCollector) -> None:
    """Search the headers and footers of all page styles for marks of origin."""
    if "styles.xml" not in archive:
        return
    for element in parse_xml(archive.read("styles.xml")).iter():
        if re.fullmatch(r"(?:header|footer)(?:-left|-first)?", _name(element)):
            for paragraph in element.iter(f"{_TEXT}p"):
                marks.add_margin("styles.xml", "".join(paragraph.itertext()))


def _title(archive: CheckedArchive) -> str:
    if "meta.xml" not in archive:
        return ""
    element = parse_xml(archive.read("meta.xml")).find(".//{*}title")
    return "" if element is None else str(element.text or "")
