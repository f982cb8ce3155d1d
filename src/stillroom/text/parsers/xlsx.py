"""Excel workbooks: each sheet as a Markdown table, in blocks of rows labeled by their cells.

Cells give their last computed values, not formulas. Hidden sheets are read too and named so.
"""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.errors import MissingExtraError
from stillroom.records import Document
from stillroom.text.archives import Archive, open_archive
from stillroom.text.assembly import Assembly, render_table
from stillroom.text.method import Parser, Source
from stillroom.text.office import unreadable

__all__ = ["Xlsx"]

_BLOCK_ROWS = 20
_MAX_COLUMNS = 512


class Xlsx(Parser):
    """Excel workbooks since 2007."""

    suffixes: ClassVar[tuple[str, ...]] = (".xlsx", ".xlsm")
    media_type: ClassVar[str] = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: Source) -> Document:
        try:
            import openpyxl
        except ImportError as error:
            raise MissingExtraError.of("openpyxl", "documents", "reading workbooks") from error
        archive = open_archive(data, source.path, source.limits, required="[Content_Types].xml")
        assembly = Assembly(source)
        cut = 0
        with unreadable(source.path):
            book = openpyxl.load_workbook(
                io.BytesIO(data), read_only=True, data_only=True, keep_links=False
            )
            for sheet in book.worksheets[: source.limits.pages]:
                cut += _add_sheet(sheet, archive, assembly)
            title = str(book.properties.title or "")
            sheets = book.sheetnames
            book.close()
        metadata: dict[str, Any] = {"sheets": sheets}
        if cut:
            metadata["rows_cut_at_column"] = {str(_MAX_COLUMNS): cut}
        return assembly.finish(title=title or source.stem, metadata=metadata)


def _add_sheet(sheet: Any, archive: Archive, assembly: Assembly) -> int:
    """Add one sheet; return how many rows were cut for their width."""
    from openpyxl.utils import get_column_letter

    sheet.reset_dimensions()
    span = archive.span(str(getattr(sheet, "_worksheet_path", "")).lstrip("/"))
    cut, is_first = 0, True
    for first, rows in _blocks(sheet):
        cut += sum(len(row) > _MAX_COLUMNS for row in rows)
        width = min(max(map(len, rows)), _MAX_COLUMNS)
        label = f"sheet {sheet.title}!A{first}:{get_column_letter(max(width, 1))}"
        label += str(first + len(rows) - 1)
        lines = render_table(rows).split("\n")
        if not lines[0]:
            continue
        if is_first:
            assembly.gap()
            assembly.heading(2, sheet.title)
            state = "" if sheet.sheet_state == "visible" else " (hidden)"
            assembly.add(f"## {sheet.title}{state}\n\n")
        else:
            assembly.gap("\n")
            del lines[1]  # only the first block's first row is a header
        is_first = False
        assembly.add("\n".join(lines), span, label=label)
    return cut


def _blocks(sheet: Any) -> Iterator[tuple[int, list[list[str]]]]:
    """Yield (first row's number, rows) with empty rows cut from the ends of blocks."""
    block: list[list[str]] = []
    start = 1
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
        cells = [_show(value) for value in row]
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


def _show(value: object) -> str:
    """Return a cell's value as a person would write it."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime.datetime):
        is_day = value.time() == datetime.time(0)
        return value.date().isoformat() if is_day else value.isoformat(" ")
    return str(value)
