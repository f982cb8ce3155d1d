"""Table detection on PDF pages, by ruling lines and by alignment.

Ruled tables are found from the lines and their crossings, independent of the text. Rectangles count
by their four sides, thin ones as one line; curves are ignored. Whether aligned rows are a table is
decided by ``layout``; here they are split into cells.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from stillroom.text.pdf.page import (
    SOFT_HYPHEN,
    Box,
    Gaps,
    TextRow,
    TextRun,
    group_rows,
    is_inside,
    join_runs,
    rotate_box,
    split_cells,
)

__all__ = [
    "TableGrid",
    "align_rows",
    "find_column_gutters",
    "find_table_grids",
    "read_grid_rows",
    "read_ruling_lines",
    "split_table_sections",
    "trim_table_tail",
]


_MIN_GUTTER = (
    0.45  # of the characters' height: the narrowest gap that three or more rows leave free
)

_WIDE_GUTTER = 0.9  # the same for two rows
_MANY_ROWS = 8
_LARGE_RATIO = 1.3  # times the table's type size: not a cell


def split_table_sections(band: list[TextRow]) -> Iterator[list[TextRow]]:
    """Yield a table's rows in sections: lone bold or large lines are headings."""
    start = 0
    usual = median(run.type_size for row in band for run in row)
    for index, row in enumerate(band):
        is_large = any(run.type_size >= _LARGE_RATIO * usual for run in row)
        is_lone = is_large or (len(row) == 1 and row[0].is_bold)
        if is_lone and index > start:
            yield band[start:index]
        if is_lone:
            yield [row]
            start = index + 1
    if start < len(band):
        yield band[start:]


def find_column_gutters(rows: list[TextRow]) -> Gaps:
    """Return the gaps that all words of all rows leave free, between columns of a table.

    Uses words rather than runs, since columns may be close. One of many rows may cross a gap.
    """
    if len(rows) < 2:
        return []
    size = median(run.size for row in rows for run in row)
    words = [[word[1:] for run in row for word in run.words] for row in rows]
    edges = np.unique([edge for row in words for word in row for edge in word])
    if len(edges) < 2:
        return []
    crossing = np.zeros(len(edges), dtype=np.int64)
    for row in words:
        steps = np.zeros(len(edges), dtype=np.int64)
        np.add.at(steps, np.searchsorted(edges, [left for left, _ in row]), 1)
        np.add.at(steps, np.searchsorted(edges, [right for _, right in row]), -1)
        crossing += np.cumsum(steps) > 0
    is_free = crossing[:-1] <= (1 if len(rows) >= _MANY_ROWS else 0)
    gutters: Gaps = []
    for index in np.flatnonzero(is_free):
        start, end = float(edges[index]), float(edges[index + 1])
        if gutters and gutters[-1][1] == start:
            gutters[-1] = (gutters[-1][0], end)
        else:
            gutters.append((start, end))
    least = _MIN_GUTTER * size if len(rows) >= 3 else _WIDE_GUTTER * size
    return [strip for strip in gutters if strip[1] - strip[0] >= least]


def trim_table_tail(band: list[TextRow]) -> list[TextRow]:
    """Return a table's rows without lone lines at its end, which are text after the table."""
    stop = len(band)
    while stop > 2 and len(band[stop - 1]) == 1:
        stop -= 1
    return band[:stop]


def align_rows(band: list[TextRow], gutters: Gaps) -> list[list[str]]:
    """Return the cells of rows without rules; continuation rows are joined to the one above."""
    size = median(run.size for row in band for run in row)
    rows: list[list[str]] = []
    steps = [
        min(run.top for run in below) - max(run.bottom for run in above)
        for above, below in pairwise(band)
    ]
    is_spaced = bool(steps) and max(steps) > min(steps) + 0.35 * size
    above: list[TextRow] = []
    for index, row in enumerate(band):
        cells = split_cells(row, gutters)
        texts = [join_runs(cell) for cell in cells]
        is_close = index > 0 and is_spaced and steps[index - 1] < min(steps) + 0.15 * size
        column = _wrapped_column(cells, above, gutters, band) if is_close else -1
        if column >= 0:
            rows[-1][column] = _join_cell_texts(rows[-1][column], texts[column])
        else:
            rows.append(texts)
        above = cells
    return rows


def _wrapped_column(
    cells: list[TextRow], above: list[TextRow], gutters: Gaps, band: list[TextRow]
) -> int:
    """Return the one column in which a row continues the one above, or -1."""
    filled = [index for index, cell in enumerate(cells) if cell]
    column = filled[0]
    if len(filled) != 1 or column == 0 or not above[column]:
        return -1
    left = gutters[column - 1][1]
    right = (
        gutters[column][0] if column < len(gutters) else max(r.right for row in band for r in row)
    )
    is_full = max(run.right for run in above[column]) - left >= 0.6 * (right - left)
    return column if is_full else -1


def _join_cell_texts(old: str, new: str) -> str:
    if old.endswith((SOFT_HYPHEN, "-")):
        return f"{old}\n{new}"  # for the document's vocabulary to resolve
    return f"{old} {new}".strip()


def read_grid_rows(grid: TableGrid, inside: list[TextRun]) -> list[list[str]]:
    """Return the texts of a ruled table's cells; empty if it only frames other content."""
    filled: dict[tuple[int, int], list[TextRun]] = {}
    for run in inside:
        for word in run.words:
            middle = (word[1] + word[2]) / 2
            for row, column, box in grid.cells:
                if box[0] <= middle <= box[2] and box[1] <= run.middle <= box[3]:
                    piece = TextRun(
                        [word], word[1], run.top, word[2], run.bottom, run.size, run.type_size
                    )
                    filled.setdefault((row, column), []).append(piece)
                    break
    if len(filled) < 3 or any(_is_frame_cell(grid, inside, cell) for cell in grid.cells):
        return []
    rows = [[""] * (len(grid.xs) - 1) for _ in grid.ys[1:]]
    for (row, column), pieces in filled.items():
        text = ""
        for line in group_rows(pieces):
            text = _join_cell_texts(text, join_runs(line))
        rows[row][column] = text
    return rows


def _is_frame_cell(grid: TableGrid, inside: list[TextRun], cell: tuple[int, int, Box]) -> bool:
    """Return whether a cell itself contains a table or columns."""
    rows = group_rows([run for run in inside if is_inside(run, cell[2])])
    return sum(len(row) >= 2 for row in rows) >= 2 and len(rows) >= 3


_SNAP_DISTANCE = 3.0  # points; closer lines are one
_MIN_RULE_LENGTH = 4.0
_MAX_RULES = 3000
_MAX_SEGMENTS = 20_000
_MAX_NESTING = 4
_LINE_TO, _BEZIER_TO, _MOVE_TO = 0, 1, 2
_PATH, _FORM = 2, 5
TransformMatrix = tuple[float, float, float, float, float, float]
RulingLine = tuple[float, float, float]
"""A ruling line: its position across its direction, its start and end along it."""


@dataclass(frozen=True, slots=True)
class TableGrid:
    """A ruled table: the borders of its columns and rows, and its cells.

    A cell is ``(row, column)`` with the box of all base cells that it merges.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    cells: tuple[tuple[int, int, Box], ...]

    @property
    def box(self) -> Box:
        """The bounding box of the grid."""
        return self.xs[0], self.ys[0], self.xs[-1], self.ys[-1]


def read_ruling_lines(page: Any, turn: int = 0) -> tuple[list[RulingLine], list[RulingLine]]:
    """Return the horizontal and the vertical rules of a page, y downward."""
    level: list[RulingLine] = []
    upright: list[RulingLine] = []
    for left, top, right, bottom in _iter_segments(page):
        x0, y0, x1, y1 = rotate_box((left, top, right, bottom), turn)
        if y1 - y0 <= 1 and x1 - x0 >= _MIN_RULE_LENGTH:
            level.append(((y0 + y1) / 2, x0, x1))
        elif x1 - x0 <= 1 and y1 - y0 >= _MIN_RULE_LENGTH:
            upright.append(((x0 + x1) / 2, y0, y1))
        if len(level) + len(upright) > _MAX_RULES:  # a drawing, not a table
            return [], []
    return _join_rules(level), _join_rules(upright)


def find_table_grids(level: list[RulingLine], upright: list[RulingLine]) -> list[TableGrid]:
    """Return the grids formed by crossing rules, of at least two rows and two columns."""
    groups = _UnionFind(len(level) + len(upright))
    for i, (y, x0, x1) in enumerate(level):
        for j, (x, y0, y1) in enumerate(upright, len(level)):
            if (
                x0 - _SNAP_DISTANCE <= x <= x1 + _SNAP_DISTANCE
                and y0 - _SNAP_DISTANCE <= y <= y1 + _SNAP_DISTANCE
            ):
                groups.join(i, j)
    members: dict[int, tuple[list[RulingLine], list[RulingLine]]] = {}
    for i, rule in enumerate([*level, *upright]):
        members.setdefault(groups.find(i), ([], []))[i >= len(level)].append(rule)
    grids = [grid for pair in members.values() if (grid := _build_grid(*pair)) is not None]
    return sorted(grids, key=lambda grid: (grid.ys[0], grid.xs[0]))


class _UnionFind:
    """Union-find over integers."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, first: int, second: int) -> None:
        first, second = self.find(first), self.find(second)
        self._parent[max(first, second)] = min(first, second)


def _build_grid(level: list[RulingLine], upright: list[RulingLine]) -> TableGrid | None:
    if len(level) < 2 or not upright:
        return None
    ys = _find_borders([rule[0] for rule in level], [end for rule in upright for end in rule[1:]])
    xs = _find_borders([rule[0] for rule in upright], [end for rule in level for end in rule[1:]])
    rows, columns = len(ys) - 1, len(xs) - 1
    if rows < 2 or columns < 2 or rows * columns > 10_000:
        return None
    below = [_rules_at(level, border) for border in ys]
    rules_at_border = [_rules_at(upright, border) for border in xs]
    groups = _UnionFind(rows * columns)
    for row in range(rows):
        for column in range(columns):
            middle_x = (xs[column] + xs[column + 1]) / 2
            middle_y = (ys[row] + ys[row + 1]) / 2
            here = row * columns + column
            if column + 1 < columns and not _is_ruled(rules_at_border[column + 1], middle_y):
                groups.join(here, here + 1)
            if row + 1 < rows and not _is_ruled(below[row + 1], middle_x):
                groups.join(here, here + columns)
    joined: dict[int, list[int]] = {}
    for cell in range(rows * columns):
        joined.setdefault(groups.find(cell), []).append(cell)
    cells = []
    for first, inside in joined.items():
        at_rows = [cell // columns for cell in inside]
        at_columns = [cell % columns for cell in inside]
        box = (
            xs[min(at_columns)],
            ys[min(at_rows)],
            xs[max(at_columns) + 1],
            ys[max(at_rows) + 1],
        )
        cells.append((first // columns, min(at_columns), box))
    return TableGrid(tuple(xs), tuple(ys), tuple(cells)) if len(cells) >= 4 else None


def _find_borders(crossings: list[float], ends: list[float]) -> list[float]:
    """Return the row or column borders; rules beyond the crossings add outer borders."""
    positions = [*crossings]
    low, high = min(crossings), max(crossings)
    if min(ends) < low - 2 * _SNAP_DISTANCE:
        positions.append(min(ends))
    if max(ends) > high + 2 * _SNAP_DISTANCE:
        positions.append(max(ends))
    borders: list[float] = []
    for position in sorted(positions):
        if not borders or position - borders[-1] > _SNAP_DISTANCE:
            borders.append(position)
    return borders


def _rules_at(rules: list[RulingLine], border: float) -> list[RulingLine]:
    return [rule for rule in rules if abs(rule[0] - border) <= _SNAP_DISTANCE]


def _is_ruled(rules: list[RulingLine], along: float) -> bool:
    return any(rule[1] - _SNAP_DISTANCE <= along <= rule[2] + _SNAP_DISTANCE for rule in rules)


def _join_rules(rules: list[RulingLine]) -> list[RulingLine]:
    """Join rules that lie on one line and touch."""
    joined: list[RulingLine] = []
    lines: list[tuple[float, list[RulingLine]]] = []
    for rule in sorted(rules):
        if lines and rule[0] - lines[-1][0] <= _SNAP_DISTANCE:
            lines[-1][1].append(rule)
        else:
            lines.append((rule[0], [rule]))
    for position, together in lines:
        start, end = together[0][1], together[0][1] - 1
        for _, low, high in sorted(together, key=lambda rule: rule[1]):
            if low > end + _SNAP_DISTANCE and end > start:
                joined.append((position, start, end))
                start = low
            start = min(start, low) if end < start else start
            end = max(end, high)
        joined.append((position, start, end))
    return joined


def _iter_segments(page: Any) -> Iterator[Box]:
    """Yield the straight lines of a page's drawings as boxes, y downward."""
    import pypdfium2.raw as pdfium

    count = pdfium.FPDFPage_CountObjects(page)
    stack: list[tuple[Any, TransformMatrix, int]] = [
        (pdfium.FPDFPage_GetObject(page, index), (1, 0, 0, 1, 0, 0), 0)
        for index in range(min(count, _MAX_SEGMENTS))
    ]
    num_segments = 0
    while stack:
        item, outer, depth = stack.pop()
        kind = pdfium.FPDFPageObj_GetType(item)
        if kind not in {_PATH, _FORM}:
            continue
        matrix = _multiply_matrices(_read_matrix(item), outer)
        if kind == _FORM:
            if depth < _MAX_NESTING:
                inside = min(pdfium.FPDFFormObj_CountObjects(item), _MAX_SEGMENTS)
                stack += [
                    (pdfium.FPDFFormObj_GetObject(item, index), matrix, depth + 1)
                    for index in range(inside)
                ]
            continue
        for box in _path_segments(item, matrix):
            num_segments += 1
            if num_segments > _MAX_SEGMENTS:
                return
            yield box


def _read_matrix(page_object: Any) -> TransformMatrix:
    import pypdfium2.raw as pdfium

    matrix = pdfium.FS_MATRIX()
    if not pdfium.FPDFPageObj_GetMatrix(page_object, ctypes.byref(matrix)):
        return (1, 0, 0, 1, 0, 0)
    return (matrix.a, matrix.b, matrix.c, matrix.d, matrix.e, matrix.f)


def _multiply_matrices(inner: TransformMatrix, outer: TransformMatrix) -> TransformMatrix:
    a, b, c, d, e, f = inner
    g, h, i, j, k, m = outer
    return (a * g + b * i, a * h + b * j, c * g + d * i, c * h + d * j,
            e * g + f * i + k, e * h + f * j + m)  # fmt: skip


def _path_segments(path: Any, matrix: TransformMatrix) -> Iterator[Box]:
    """Yield the straight lines of one path; a thin filled rectangle is one line."""
    import pypdfium2.raw as pdfium

    a, b, c, d, e, f = matrix
    x, y = ctypes.c_float(), ctypes.c_float()
    start: tuple[float, float] | None = None
    before: tuple[float, float] | None = None
    for index in range(min(pdfium.FPDFPath_CountSegments(path), _MAX_SEGMENTS)):
        segment = pdfium.FPDFPath_GetPathSegment(path, index)
        pdfium.FPDFPathSegment_GetPoint(segment, ctypes.byref(x), ctypes.byref(y))
        here = (a * x.value + c * y.value + e, -(b * x.value + d * y.value + f))
        kind = pdfium.FPDFPathSegment_GetType(segment)
        if kind == _LINE_TO and before is not None:
            yield _make_box(before, here)
        elif kind == _MOVE_TO:
            start = here
        before = here
        if pdfium.FPDFPathSegment_GetClose(segment) and start is not None:
            yield _make_box(before, start)


def _make_box(first: tuple[float, float], second: tuple[float, float]) -> Box:
    return (
        min(first[0], second[0]),
        min(first[1], second[1]),
        max(first[0], second[0]),
        max(first[1], second[1]),
    )
