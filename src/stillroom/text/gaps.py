"""Runs of a page side by side: rows, the gaps within them, and what falls between two gaps.

Knows places on the page only, not whether they make a table or columns of text.
"""

from __future__ import annotations

from collections.abc import Sequence

from stillroom.text.glyphs import Box, Run

__all__ = [
    "Gaps",
    "Row",
    "clear_gaps",
    "find_gaps",
    "group_rows",
    "is_inside",
    "join_words",
    "split_cells",
]

Row = list[Run]
Gaps = list[tuple[float, float]]


def group_rows(runs: Sequence[Run]) -> list[Row]:
    """Return runs that stand side by side together, from top to bottom, each from left to right."""
    rows: list[Row] = []
    edges: list[tuple[float, float]] = []
    for run in sorted(runs, key=lambda run: (run.middle, run.left)):
        for at in range(len(rows) - 1, max(len(rows) - 4, -1), -1):
            top, bottom = edges[at]
            overlap = min(bottom, run.bottom) - max(top, run.top)
            if overlap >= 0.5 * min(bottom - top, run.bottom - run.top):
                rows[at].append(run)
                break
        else:
            rows.append([run])
            edges.append((run.top, run.bottom))
    for row in rows:
        row.sort(key=lambda run: run.left)
    return rows


def join_words(runs: Sequence[Run]) -> str:
    """Return the runs of one line as text, from the right where the script is written so."""
    turned = sum(run.is_right_to_left for run in runs) * 2 > len(runs)
    ordered = sorted(runs, key=lambda run: run.left, reverse=turned)
    return " ".join(text for run in ordered if (text := run.text))


def is_inside(run: Run, box: Box) -> bool:
    """Say whether a run's middle is within a box."""
    middle = (run.left + run.right) / 2
    return box[0] <= middle <= box[2] and box[1] <= run.middle <= box[3]


def find_gaps(row: Row, least: float) -> Gaps:
    """Return the gaps between a row's runs that are wide enough to part columns."""
    found: Gaps = []
    end = row[0].right
    for run in row[1:]:
        if run.left - end >= least:
            found.append((end, run.left))
        end = max(end, run.right)
    return found


def clear_gaps(gutters: Gaps, row: Row, least: float) -> Gaps:
    """Return what a row leaves free of gutters."""
    free = gutters
    for run in row:
        left_over: Gaps = []
        for start, end in free:
            pieces = ((start, min(end, run.left)), (max(start, run.right), end))
            if run.right <= start or run.left >= end:
                left_over.append((start, end))
            else:
                left_over += [piece for piece in pieces if piece[1] - piece[0] >= least]
        free = left_over
    return free


def split_cells(row: Row, gutters: Gaps) -> list[Row]:
    """Return a row's runs by column."""
    cells: list[Row] = [[] for _ in range(len(gutters) + 1)]
    for run in row:
        middle = (run.left + run.right) / 2
        cells[sum(middle > (start + end) / 2 for start, end in gutters)].append(run)
    return cells
