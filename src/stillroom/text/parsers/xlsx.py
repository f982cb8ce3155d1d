"""Excel workbooks: sheets as Markdown tables in blocks of rows labeled by cell range.

Cells give their last computed values; where none is stored, the formula. A merged cell is repeated
in all cells that it covers, unless it is alone in its row. Hidden sheets and rows are read too;
hidden sheets are marked, hidden rows counted. Comments and pictures are left out and counted.
"""

from __future__ import annotations

import datetime
import html
import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.errors import MissingExtraError
from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder, render_table
from stillroom.text.documents.office import CheckedArchive, open_archive, unreadable_as_error
from stillroom.text.documents.statements import MarkCollector
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Xlsx"]

_BLOCK_ROWS = 20
_MAX_COLUMNS = 512
_MAX_MERGES = 10_000
_MAX_TABLE_WIDTH = 64  # columns; a wider merged cell appears once
_MAX_BLOCK_ROWS = 256
_MERGE = re.compile(rb'<(?:\w+:)?mergeCell\s+ref="([A-Z]{1,3})(\d{1,7}):([A-Z]{1,3})(\d{1,7})"')
_VALUELESS = re.compile(
    rb"(?:</(?:\w+:)?f>|<(?:\w+:)?f[^>]*/>)\s*+(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v></(?:\w+:)?v>)?"
    rb"\s*+</(?:\w+:)?c>"
)
_HIDDEN_ROW = re.compile(rb'<(?:\w+:)?row\s[^>]*\bhidden="(?:1|true)"')
_BOOK = "xl/workbook.xml"
_SHEET = re.compile(rb"<(?:\w+:)?sheet\s")
_COMMENT = re.compile(rb"<(?:\w+:)?comment\s")
_MARGIN = re.compile(rb"<(?:\w+:)?(?:odd|even|first)(?:Header|Footer)>([^<]{1,2000})<")
_MARGIN_CODE = re.compile(r"&(?:\"[^\"]{0,100}\"|\d{1,3}|K[0-9A-F]{6}|[A-Z])")


class Xlsx(Parser):
    """Excel workbooks since 2007."""

    suffixes: ClassVar[tuple[str, ...]] = (".xlsx", ".xlsm")
    media_type: ClassVar[str] = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        with MissingExtraError.guard("openpyxl", "documents", "reading workbooks"):
            import openpyxl
        archive = open_archive(data, source.path, source.limits, required="[Content_Types].xml")
        assembly = DocumentBuilder(source)
        counts: Counter[str] = Counter()
        marks = MarkCollector()
        marks.add_archive(archive)

        def load(*, values: bool) -> Any:
            return openpyxl.load_workbook(
                io.BytesIO(data), read_only=True, data_only=values, keep_links=False
            )

        with unreadable_as_error(source.path):
            book = load(values=True)
            formulas = None
            for index, sheet in enumerate(book.worksheets[: source.limits.pages]):
                xml = _sheet_xml(sheet, archive)
                if _VALUELESS.search(xml):
                    formulas = formulas or load(values=False)
                plain = formulas.worksheets[index] if _VALUELESS.search(xml) and formulas else None
                for margin in _MARGIN.findall(xml):
                    text = html.unescape(margin.decode("utf-8", "replace"))
                    marks.add_margin("a header or footer", _MARGIN_CODE.sub("\n", text))
                counts["hidden_rows"] += len(_HIDDEN_ROW.findall(xml))
                _SheetReader(sheet, plain, _merges(xml), counts).add_to(assembly, archive)
            title, sheets = str(book.properties.title or ""), book.sheetnames
            listed = len(_SHEET.findall(archive.read(_BOOK))) if _BOOK in archive else 0
            counts["sheets_left_out"] = max(len(book.worksheets) - source.limits.pages, 0)
            counts["sheets_left_out"] += max(listed - len(sheets), 0)  # without a part of their own
            book.close()
        metadata: dict[str, Any] = {"sheets": sheets}
        for name in archive.file.namelist():
            if name.startswith("xl/comments"):
                counts["comments_left_out"] += len(_COMMENT.findall(archive.read(name)))
            counts["pictures_left_out"] += name.startswith("xl/media/")
        if counts["cut"]:
            metadata["rows_cut_at_column"] = {str(_MAX_COLUMNS): counts.pop("cut")}
        metadata |= {key: count for key, count in counts.items() if count}
        metadata |= marks.to_metadata()
        return assembly.finish(title=title or source.stem, metadata=metadata)


def _sheet_xml(sheet: Any, archive: CheckedArchive) -> bytes:
    name = _member(sheet)
    return archive.read(name) if name in archive else b""


def _member(sheet: Any) -> str:
    return str(getattr(sheet, "_worksheet_path", "")).lstrip("/")


CellArea = tuple[int, int, int, int]
"""First row, last row, first column, last column; rows from 1, columns from 0."""


def _merges(xml: bytes) -> list[CellArea]:
    """Return the merged areas of a sheet, sorted by first row."""
    from openpyxl.utils import column_index_from_string as index

    areas = []
    for match in _MERGE.finditer(xml):
        left, top, right, bottom = (group.decode() for group in match.groups())
        areas.append((int(top), int(bottom), index(left) - 1, index(right) - 1))
        if len(areas) >= _MAX_MERGES:
            break
    return sorted(areas)


class _SheetReader:
    """One sheet: its rows with merged areas and missing values, in blocks."""

    def __init__(
        self, sheet: Any, formulas: Any | None, merges: list[CellArea], counts: Counter[str]
    ) -> None:
        self._sheet, self._formulas, self._counts = sheet, formulas, counts
        self._merges = merges
        self._active: list[tuple[CellArea, str]] = []
        self._columns: list[int] = []
        self._header: list[str] = []

    def add_to(self, assembly: DocumentBuilder, archive: CheckedArchive) -> None:
        """Add the sheet as a table in blocks."""
        from openpyxl.utils import get_column_letter

        self._sheet.reset_dimensions()
        span = archive.span(_member(self._sheet))
        title = " ".join(self._sheet.title.split())
        for first, rows in self._blocks():
            self._counts["cut"] += sum(len(row) > _MAX_COLUMNS for row in rows)
            used = {
                column for row in rows for column, cell in enumerate(row[:_MAX_COLUMNS]) if cell
            }
            if not used:
                continue
            is_first = not self._columns
            is_wider = not used <= set(self._columns)
            if is_first:
                self._header = rows[0]
                assembly.gap()
                assembly.heading(2, title)
                state = "" if self._sheet.sheet_state == "visible" else " (hidden)"
                assembly.add(f"## {title}{state}\n\n")
            elif is_wider:  # new columns start a new table with the header repeated
                rows = [self._header, *rows]
            self._columns = sorted({*self._columns, *used})
            lines = render_table(rows, self._columns).split("\n")
            if not is_first:
                assembly.gap("\n\n" if is_wider else "\n")
            if not is_wider:
                del lines[1]  # only the first block of a table has a header
            label = f"sheet {title}!A{first}:{get_column_letter(max(used) + 1)}"
            label += str(first + len(rows) - 1 - (is_wider and not is_first))
            assembly.add("\n".join(lines), span, label=label)

    def _blocks(self) -> Iterator[tuple[int, list[list[str]]]]:
        """Yield (first row's number, rows), without empty rows at the ends of blocks."""
        block: list[list[str]] = []
        start = 1
        for number, cells in self._rows():
            while cells and not cells[-1]:
                cells.pop()
            if not block:
                if not cells:
                    continue
                start = number
            block.append(cells)
            if len(block) == _BLOCK_ROWS:
                yield start, block
                block = []
        while block and not block[-1]:
            block.pop()
        if block:
            yield start, block

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        formulas = None
        if self._formulas is not None:
            self._formulas.reset_dimensions()
            formulas = self._formulas.iter_rows(values_only=True)
        waiting = self._merges[::-1]
        for number, row in enumerate(self._sheet.iter_rows(values_only=True), 1):
            cells = [_format_value(value) for value in row]
            if formulas is not None:
                for column, value in enumerate(next(formulas, ())):
                    is_bare = column < len(cells) and not cells[column] and value is not None
                    if is_bare and str(value).startswith("="):
                        cells[column] = str(value)
                        self._counts["formulas_without_values"] += 1
            while waiting and waiting[-1][0] <= number:
                area = waiting.pop()
                text = cells[area[2]] if area[2] < len(cells) else ""
                if text and area[3] - area[2] < _MAX_TABLE_WIDTH:
                    self._active = [*self._active[-_MAX_BLOCK_ROWS:], (area, text)]
            self._merge(number, cells)
            yield number, cells

    def _merge(self, number: int, cells: list[str]) -> None:
        """Repeat merged cells in the row, except one alone in it."""
        if not self._active:
            return
        self._active = [area for area in self._active if area[0][1] >= number]
        filled = sum(map(bool, cells))
        for (top, _, left, right), text in self._active:
            if number == top and filled <= 1:
                continue
            end = min(right, _MAX_COLUMNS)
            cells += [""] * (end + 1 - len(cells))
            for column in range(left, end + 1):
                cells[column] = cells[column] or text


def _format_value(value: object) -> str:
    """Format a cell's value as a person would write it."""
    if value is None:
        return ""
    if isinstance(value, float):
        is_integer = value.is_integer() and abs(value) < 1e15
        return str(int(value)) if is_integer else f"{value:.15g}"
    if isinstance(value, datetime.datetime):
        is_day = value.time() == datetime.time(0)
        return value.date().isoformat() if is_day else value.isoformat(" ")
    return str(value)
