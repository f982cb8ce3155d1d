"""Tables of a PDF page to rows of cells: ruled ones by their lines, others by how words align.

Knows what is written in each cell; whether something is a table at all is told by ``layout``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from statistics import median

import numpy as np

from stillroom.text.gaps import Gaps, Row, group_rows, is_inside, join_words, split_cells
from stillroom.text.glyphs import CUT, Box, Run
from stillroom.text.ruling import Grid

__all__ = ["aligned_rows", "free_strips", "ruled_rows", "split_sections", "without_tail"]

_STRIP = 0.45  # of the characters' height: the narrowest gap that three or more rows leave free
_WIDE_STRIP = 0.9  # the same of two rows
_MANY_ROWS = 8
_LARGE = 1.3  # times the type of the rest: no cell


def split_sections(band: list[Row]) -> Iterator[list[Row]]:
    """Yield a table's rows in pieces: lines that are lone and bold, or large, are headings."""
    start = 0
    usual = median(run.type_size for row in band for run in row)
    for at, row in enumerate(band):
        is_large = any(run.type_size >= _LARGE * usual for run in row)
        is_lone = is_large or (len(row) == 1 and row[0].is_bold)
        if is_lone and at > start:
            yield band[start:at]
        if is_lone:
            yield [row]
            start = at + 1
    if start < len(band):
        yield band[start:]


def free_strips(rows: list[Row]) -> Gaps:
    """Return the strips that all words of all rows leave free, between columns of a table.

    Looks at words rather than runs, since columns may stand close. One row of many may cross.
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
    found: Gaps = []
    for at in np.flatnonzero(is_free):
        start, end = float(edges[at]), float(edges[at + 1])
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    least = _STRIP * size if len(rows) >= 3 else _WIDE_STRIP * size
    return [strip for strip in found if strip[1] - strip[0] >= least]


def without_tail(band: list[Row]) -> list[Row]:
    """Return a table's rows without lone lines at its end, which follow rather than belong."""
    stop = len(band)
    while stop > 2 and len(band[stop - 1]) == 1:
        stop -= 1
    return band[:stop]


def aligned_rows(band: list[Row], gutters: Gaps) -> list[list[str]]:
    """Return the cells of rows without rules; a row that goes on the one above is joined to it."""
    size = median(run.size for row in band for run in row)
    rows: list[list[str]] = []
    steps = [
        min(run.top for run in below) - max(run.bottom for run in above)
        for above, below in pairwise(band)
    ]
    is_spaced = bool(steps) and max(steps) > min(steps) + 0.35 * size
    above: list[Row] = []
    for at, row in enumerate(band):
        cells = split_cells(row, gutters)
        texts = [join_words(cell) for cell in cells]
        is_close = at > 0 and is_spaced and steps[at - 1] < min(steps) + 0.15 * size
        column = _wrapped(cells, above, gutters, band) if is_close else -1
        if column >= 0:
            rows[-1][column] = _join(rows[-1][column], texts[column])
        else:
            rows.append(texts)
        above = cells
    return rows


def _wrapped(cells: list[Row], above: list[Row], gutters: Gaps, band: list[Row]) -> int:
    """Return the one column in which a row goes on the one above, or -1 if it stands alone."""
    filled = [at for at, cell in enumerate(cells) if cell]
    column = filled[0]
    if len(filled) != 1 or column == 0 or not above[column]:
        return -1
    left = gutters[column - 1][1]
    right = (
        gutters[column][0] if column < len(gutters) else max(r.right for row in band for r in row)
    )
    is_full = max(run.right for run in above[column]) - left >= 0.6 * (right - left)
    return column if is_full else -1


def _join(old: str, new: str) -> str:
    if old.endswith(CUT):
        return old[:-1] + new
    return f"{old} {new}".strip()


def ruled_rows(grid: Grid, inside: list[Run]) -> list[list[str]]:
    """Return the texts of a ruled table's cells; nothing if it only frames other things."""
    filled: dict[tuple[int, int], list[Run]] = {}
    for run in inside:
        for word in run.words:
            middle = (word[1] + word[2]) / 2
            for row, column, box in grid.cells:
                if box[0] <= middle <= box[2] and box[1] <= run.middle <= box[3]:
                    piece = Run(
                        [word], word[1], run.top, word[2], run.bottom, run.size, run.type_size
                    )
                    filled.setdefault((row, column), []).append(piece)
                    break
    if len(filled) < 3 or any(_is_frame(grid, inside, cell) for cell in grid.cells):
        return []
    rows = [[""] * (len(grid.xs) - 1) for _ in grid.ys[1:]]
    for (row, column), pieces in filled.items():
        text = ""
        for line in group_rows(pieces):
            text = _join(text, join_words(line))
        rows[row][column] = text
    return rows


def _is_frame(grid: Grid, inside: list[Run], cell: tuple[int, int, Box]) -> bool:
    """Say whether a cell holds what looks like a table or columns itself."""
    rows = group_rows([run for run in inside if is_inside(run, cell[2])])
    return sum(len(row) >= 2 for row in rows) >= 2 and len(rows) >= 3
