"""Tables that are drawn with lines: a PDF page's rules joined to grids of cells.

Knows where lines run and where they cross, not what is written between them. Rectangles count by
their four sides, thin ones as one line; curves are no rules.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stillroom.text.glyphs import Box, turn_box

__all__ = ["Grid", "find_grids", "read_rules"]

_NEAR = 3.0  # points; lines that are closer are one
_SHORTEST = 4.0
_MAX_RULES = 3000
_MAX_SEGMENTS = 20_000
_MAX_NESTING = 4
_LINE_TO, _BEZIER_TO, _MOVE_TO = 0, 1, 2
_PATH, _FORM = 2, 5

Matrix = tuple[float, float, float, float, float, float]
Span = tuple[float, float, float]
"""A rule: where it lies across its direction, where it begins and ends along it."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A ruled table: its columns' and rows' borders, and its cells.

    A cell is ``(row, column)`` with the box of all the base cells that it joins.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    cells: tuple[tuple[int, int, Box], ...]

    @property
    def box(self) -> Box:
        """The whole grid's box."""
        return self.xs[0], self.ys[0], self.xs[-1], self.ys[-1]


def read_rules(page: Any, turn: int = 0) -> tuple[list[Span], list[Span]]:
    """Return the level and the upright rules of a page, y downward.

    Args:
        page: PDFium's handle of the page.
        turn: The page's direction of writing, in degrees.
    """
    level: list[Span] = []
    upright: list[Span] = []
    for left, top, right, bottom in _segments(page):
        x0, y0, x1, y1 = turn_box((left, top, right, bottom), turn)
        if y1 - y0 <= 1 and x1 - x0 >= _SHORTEST:
            level.append(((y0 + y1) / 2, x0, x1))
        elif x1 - x0 <= 1 and y1 - y0 >= _SHORTEST:
            upright.append(((x0 + x1) / 2, y0, y1))
        if len(level) + len(upright) > _MAX_RULES:  # a drawing, not a table
            return [], []
    return _join(level), _join(upright)


def find_grids(level: list[Span], upright: list[Span]) -> list[Grid]:
    """Return the grids that rules make where they cross, of two rows and two columns at least."""
    groups = _Groups(len(level) + len(upright))
    for i, (y, x0, x1) in enumerate(level):
        for j, (x, y0, y1) in enumerate(upright, len(level)):
            if x0 - _NEAR <= x <= x1 + _NEAR and y0 - _NEAR <= y <= y1 + _NEAR:
                groups.join(i, j)
    members: dict[int, tuple[list[Span], list[Span]]] = {}
    for i, rule in enumerate([*level, *upright]):
        members.setdefault(groups.find(i), ([], []))[i >= len(level)].append(rule)
    found = [grid for pair in members.values() if (grid := _grid(*pair)) is not None]
    return sorted(found, key=lambda grid: (grid.ys[0], grid.xs[0]))


class _Groups:
    """Which numbers belong together (union-find)."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, one: int) -> int:
        while self._parent[one] != one:
            self._parent[one] = self._parent[self._parent[one]]
            one = self._parent[one]
        return one

    def join(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        self._parent[max(one, other)] = min(one, other)


def _grid(level: list[Span], upright: list[Span]) -> Grid | None:
    if len(level) < 2 or not upright:
        return None
    ys = _borders([rule[0] for rule in level], [end for rule in upright for end in rule[1:]])
    xs = _borders([rule[0] for rule in upright], [end for rule in level for end in rule[1:]])
    rows, columns = len(ys) - 1, len(xs) - 1
    if rows < 2 or columns < 2 or rows * columns > 10_000:
        return None
    below = [_at(level, border) for border in ys]
    beside = [_at(upright, border) for border in xs]
    groups = _Groups(rows * columns)
    for row in range(rows):
        for column in range(columns):
            middle_x = (xs[column] + xs[column + 1]) / 2
            middle_y = (ys[row] + ys[row + 1]) / 2
            here = row * columns + column
            if column + 1 < columns and not _is_ruled(beside[column + 1], middle_y):
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
    return Grid(tuple(xs), tuple(ys), tuple(cells)) if len(cells) >= 4 else None


def _borders(crossings: list[float], ends: list[float]) -> list[float]:
    """Return where rows or columns begin and end; rules that reach beyond add the outer borders."""
    places = [*crossings]
    low, high = min(crossings), max(crossings)
    if min(ends) < low - 2 * _NEAR:
        places.append(min(ends))
    if max(ends) > high + 2 * _NEAR:
        places.append(max(ends))
    found: list[float] = []
    for place in sorted(places):
        if not found or place - found[-1] > _NEAR:
            found.append(place)
    return found


def _at(rules: list[Span], border: float) -> list[Span]:
    return [rule for rule in rules if abs(rule[0] - border) <= _NEAR]


def _is_ruled(rules: list[Span], along: float) -> bool:
    return any(rule[1] - _NEAR <= along <= rule[2] + _NEAR for rule in rules)


def _join(rules: list[Span]) -> list[Span]:
    """Return rules with those joined that lie on one line and touch."""
    joined: list[Span] = []
    places: list[tuple[float, list[Span]]] = []
    for rule in sorted(rules):
        if places and rule[0] - places[-1][0] <= _NEAR:
            places[-1][1].append(rule)
        else:
            places.append((rule[0], [rule]))
    for place, together in places:
        start, end = together[0][1], together[0][1] - 1
        for _, low, high in sorted(together, key=lambda rule: rule[1]):
            if low > end + _NEAR and end > start:
                joined.append((place, start, end))
                start = low
            start = min(start, low) if end < start else start
            end = max(end, high)
        joined.append((place, start, end))
    return joined


def _segments(page: Any) -> Iterator[Box]:
    """Yield the straight lines of a page's drawings as boxes, y downward."""
    import pypdfium2.raw as pdfium

    count = pdfium.FPDFPage_CountObjects(page)
    stack: list[tuple[Any, Matrix, int]] = [
        (pdfium.FPDFPage_GetObject(page, index), (1, 0, 0, 1, 0, 0), 0)
        for index in range(min(count, _MAX_SEGMENTS))
    ]
    seen = 0
    while stack:
        one, outer, depth = stack.pop()
        kind = pdfium.FPDFPageObj_GetType(one)
        if kind not in {_PATH, _FORM}:
            continue
        matrix = _product(_matrix_of(one), outer)
        if kind == _FORM:
            if depth < _MAX_NESTING:
                inside = min(pdfium.FPDFFormObj_CountObjects(one), _MAX_SEGMENTS)
                stack += [
                    (pdfium.FPDFFormObj_GetObject(one, index), matrix, depth + 1)
                    for index in range(inside)
                ]
            continue
        for box in _path_segments(one, matrix):
            seen += 1
            if seen > _MAX_SEGMENTS:
                return
            yield box


def _matrix_of(one: Any) -> Matrix:
    import pypdfium2.raw as pdfium

    matrix = pdfium.FS_MATRIX()
    if not pdfium.FPDFPageObj_GetMatrix(one, ctypes.byref(matrix)):
        return (1, 0, 0, 1, 0, 0)
    return (matrix.a, matrix.b, matrix.c, matrix.d, matrix.e, matrix.f)


def _product(inner: Matrix, outer: Matrix) -> Matrix:
    a, b, c, d, e, f = inner
    g, h, i, j, k, m = outer
    return (a * g + b * i, a * h + b * j, c * g + d * i, c * h + d * j,
            e * g + f * i + k, e * h + f * j + m)  # fmt: skip


def _path_segments(path: Any, matrix: Matrix) -> Iterator[Box]:
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
            yield _box(before, here)
        elif kind == _MOVE_TO:
            start = here
        before = here
        if pdfium.FPDFPathSegment_GetClose(segment) and start is not None:
            yield _box(before, start)


def _box(one: tuple[float, float], other: tuple[float, float]) -> Box:
    return (
        min(one[0], other[0]),
        min(one[1], other[1]),
        max(one[0], other[0]),
        max(one[1], other[1]),
    )
