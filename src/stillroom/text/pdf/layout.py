"""PDF page layout: reading order of columns, tables and paragraphs.

The page is cut at the tallest white strip between words that has running text on its sides, then
what is above, in and below its columns likewise. Neighboring rows of the rest with common gaps are
a table without rules. Source for columns: Breuel 2002, "Two Geometric Algorithms for Layout
Analysis" (maximal white rectangles); differs: they are found by a sweep over rows, and must be
between columns whose lines are broken as a typesetter breaks them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from statistics import median, median_low

from stillroom.text.pdf.columns import find_text_columns, split_columns
from stillroom.text.pdf.page import (
    Gaps,
    TextRow,
    TextRun,
    find_row_gaps,
    group_rows,
    intersect_gaps,
    is_inside,
    join_runs,
    split_cells,
)
from stillroom.text.pdf.tables import (
    TableGrid,
    align_rows,
    find_column_gutters,
    read_grid_rows,
    split_table_sections,
    trim_table_tail,
)

__all__ = ["PageBlock", "TextLine", "arrange_blocks"]

_GUTTER = 0.9  # of the characters' height: minimum gap between columns
_FAR_GAP = 2.5  # of the characters' height: rows further apart are in different bands
_MAX_SPREAD = 3  # lines of a paragraph whose spaces lie above each other
_LIST_MARK = re.compile(
    r"[•◦▪▫‣●○■□➢➤⁃∙·*–—-]|\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,4})[.)]|\.?\d{1,2}(?:\.\d{1,2})*\.?"
)
_BULLET = re.compile(r"^[•◦▪▫‣●○■□➢➤⁃∙·*–—-](?=\s)\s*")
_LIST_ITEM = re.compile(r"^(?:[•◦▪▫‣●○■□➢➤⁃∙·*–—-]|\d{1,3}[.)]|\(?(?:\d{1,2}|[a-zA-Z])[.)])\s")


@dataclass(slots=True)
class TextLine:
    """One line of text."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    size: float
    type_size: float
    is_bold: bool


@dataclass(slots=True)
class PageBlock:
    """A paragraph or list item (lines), or a table (rows of cells)."""

    kind: str
    lines: list[TextLine] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    top: float = 0.0
    bottom: float = 0.0
    cell_size: float = 0.0

    @property
    def text(self) -> str:
        """The lines joined by line ends; ``CUT`` marks a hyphenated word."""
        return "\n".join(line.text for line in self.lines)

    @property
    def size(self) -> float:
        """The type size of most of its lines or cells, in points."""
        return median(line.type_size for line in self.lines) if self.lines else self.cell_size

    @property
    def is_bold(self) -> bool:
        """Whether all of its lines are bold."""
        return bool(self.lines) and all(line.is_bold for line in self.lines)


def arrange_blocks(runs: Sequence[TextRun], grids: Sequence[TableGrid] = ()) -> list[PageBlock]:
    """Return a page's blocks in reading order."""
    remaining = list(runs)
    tables: list[PageBlock] = []
    for grid in grids:
        inside = [run for run in remaining if is_inside(run, grid.box)]
        rows = read_grid_rows(grid, inside) if inside else []
        if not rows:
            continue
        size = median(run.type_size for run in inside)
        tables.append(
            PageBlock("table", rows=rows, top=grid.ys[0], bottom=grid.ys[-1], cell_size=size)
        )
        placed = {id(run) for run in inside}
        remaining = [run for run in remaining if id(run) not in placed]
        remaining += _table_placeholders(inside, grid, len(tables) - 1)
    return list(_flow_region(remaining, tables))


def _table_placeholders(inside: list[TextRun], grid: TableGrid, number: int) -> Iterator[TextRun]:
    """Yield one placeholder run for each row of a ruled table."""
    left, _, right, _ = grid.box
    for row in group_rows(inside):
        top, bottom = min(run.top for run in row), max(run.bottom for run in row)
        yield TextRun([], left, top, right, bottom, row[0].size, row[0].type_size, table=number)


def _flow_region(runs: Sequence[TextRun], tables: list[PageBlock]) -> Iterator[PageBlock]:
    """Yield the blocks of a part of the page: above, in and below its text columns."""
    rows = group_rows(runs)
    band = find_text_columns(rows)
    if band is None:
        yield from _flow_rows(rows, tables)
        return
    start, stop, gutters = band
    above, below = rows[:start], rows[stop:]
    columns = split_columns(rows[start:stop], gutters)
    for part in (list(chain(*above)), *columns, list(chain(*below))):
        yield from _flow_region(part, tables)


def _flow_rows(rows: list[TextRow], tables: list[PageBlock]) -> Iterator[PageBlock]:
    plain: list[TextRow] = []
    index = 0
    while index < len(rows):
        stop, gutters = _take_band(rows, index)
        band = rows[index:stop]
        if _is_table(band, gutters) and not _is_spread_text(rows, index, stop):
            band = trim_table_tail(band)
            stop = index + len(band)
            for piece in split_table_sections(band):
                narrow = find_column_gutters(piece)
                if not narrow:
                    plain += piece
                    continue
                yield from _paragraphs(plain, tables)
                plain = []
                top = min(run.top for run in piece[0])
                bottom = max(run.bottom for run in piece[-1])
                rows_of = align_rows(piece, narrow)
                size = median(run.type_size for row in piece for run in row)
                yield PageBlock("table", rows=rows_of, top=top, bottom=bottom, cell_size=size)
        else:
            stop = index + 1
            plain.append(rows[index])
        index = stop
    yield from _paragraphs(plain, tables)


def _take_band(rows: list[TextRow], index: int) -> tuple[int, Gaps]:
    """Return the end of the rows that share the gaps of row ``index``, and those gaps."""
    size = median(run.size for run in rows[index])
    gutters = find_row_gaps(rows[index], _GUTTER * size)
    stop = index + 1
    while gutters and stop < len(rows):
        row = rows[stop]
        above = max(run.bottom for run in rows[stop - 1])
        if min(run.top for run in row) - above > _FAR_GAP * size:
            break
        gaps = find_row_gaps(row, _GUTTER * size)
        common = intersect_gaps(gutters, row, _GUTTER * size)
        is_richer = len(gaps) - len(common) >= 3 and stop - index <= 2
        is_across = len(row) == 1 and len(common) < len(gutters) and stop - index >= 3
        if not common or is_richer or is_across:
            break
        gutters, stop = common, stop + 1
    return stop, gutters


def _is_table(band: list[TextRow], gutters: Gaps) -> bool:
    """Return whether rows with common gaps are a table."""
    if not gutters or len(band) < 2:
        return False
    grid = [split_cells(row, gutters) for row in band]
    shared = sum(sum(map(bool, cells)) >= 2 for cells in grid)
    if shared < 2 or _is_list(grid):
        return False
    if any(run.table >= 0 for row in band for run in row):
        return False
    if all(run.is_fixed for row in band for run in row):
        return False
    if len(gutters) == 1 and 2 * sum(bool(cells[-1]) for cells in grid) < len(band):
        return False  # numbers of some lines
    return shared >= 3 or len(gutters) >= 2


def _is_spread_text(rows: list[TextRow], start: int, stop: int) -> bool:
    """Return whether rows are lines of a paragraph whose words were spread to fill its width."""
    size = median(run.size for run in rows[start])
    for row, index in ((rows[start], start - 1), (rows[stop - 1], stop)):
        if 0 <= index < len(rows) and stop - start <= _MAX_SPREAD:
            other = rows[index]
            space = max(row[0].top, other[0].top) - min(row[0].bottom, other[0].bottom)
            uneven = abs(row[0].left - other[0].left) + abs(row[-1].right - other[-1].right)
            if space <= 0.6 * size and uneven <= 0.5 * size:
                return True
    return False


def _is_list(grid: list[list[TextRow]]) -> bool:
    """Return whether all columns except the last hold only bullets or numbers."""
    marks = [join_runs(cell) for cells in grid for cell in cells[:-1] if cell]
    return bool(marks) and all(_LIST_MARK.fullmatch(mark) for mark in marks)


def _paragraphs(rows: list[TextRow], tables: list[PageBlock]) -> Iterator[PageBlock]:
    """Yield the paragraphs, list items and ruled tables of rows without columns."""
    lines: list[TextLine] = []
    last = -1
    for row in rows:
        number = max(run.table for run in row)
        if number >= 0:
            yield from _split_paragraphs(lines)
            lines = []
            if number != last:
                yield tables[number]
            last = number
            row = [run for run in row if run.table < 0]
        lines += [_make_line(part) for part in _group_by_size(row)]
    yield from _split_paragraphs(lines)


def _group_by_size(row: TextRow) -> Iterator[TextRow]:
    """Yield the runs of a row, with distant runs of a much larger size separate."""
    part: TextRow = []
    for run in row:
        if part:
            last = part[-1]
            large, small = sorted((last.type_size, run.type_size), reverse=True)
            if large >= 1.3 * small and run.left - last.right >= 2 * large:
                yield part
                part = []
        part.append(run)
    if part:
        yield part


def _make_line(row: TextRow) -> TextLine:
    return TextLine(
        _BULLET.sub("- ", join_runs(row)),
        min(run.left for run in row),
        min(run.top for run in row),
        max(run.right for run in row),
        max(run.bottom for run in row),
        max(run.size for run in row),
        max((run for run in row), key=lambda run: len(run.words)).type_size,
        all(run.is_bold for run in row),
    )


def _split_paragraphs(lines: list[TextLine]) -> Iterator[PageBlock]:
    """Yield paragraphs, split by changes of distance, type or indentation."""
    if not lines:
        return
    steps = [below.top - above.bottom for above, below in pairwise(lines)]
    usual = median_low(steps) if steps else 0.0
    lefts = [round(line.left) for line in lines]
    margin = max(set(lefts), key=lefts.count)
    start = 0
    for index in range(1, len(lines) + 1):
        if index < len(lines) and not _begins_paragraph(lines, index, usual, margin):
            continue
        piece = lines[start:index]
        kind = "li" if _LIST_ITEM.match(piece[0].text) else "p"
        yield PageBlock(kind, piece, top=piece[0].top, bottom=piece[-1].bottom)
        start = index


def _begins_paragraph(lines: list[TextLine], index: int, usual: float, margin: float) -> bool:
    above, line = lines[index - 1], lines[index]
    size = min(above.size, line.size)
    if line.top - above.bottom > min(max(usual, -0.2 * size) + 0.4 * size, 2.2 * size):
        return True
    if not 0.88 <= line.type_size / above.type_size <= 1.14 or line.is_bold != above.is_bold:
        return True
    if _LIST_ITEM.match(line.text) or line.left > above.right or line.right < above.left:
        return True
    indent = line.left - margin
    is_first = 0.6 * size <= indent <= 4 * size and abs(above.left - margin) < 0.3 * size
    follows = index + 1 >= len(lines) or abs(lines[index + 1].left - margin) < 0.3 * size
    return is_first and follows
