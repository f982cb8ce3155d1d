"""Text columns of a page: white strips between words that have running text on both sides.

Source: Breuel 2002, "Two Geometric Algorithms for Layout Analysis" (maximal white rectangles).
Differs: they are found by a sweep over rows, and count as gutters only if lines on their sides
break where the next word no longer fits, since the columns of a table are white strips, too.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from stillroom.text.pdf.page import Gaps, TextRow, TextRun, group_rows, split_cells

__all__ = ["WhiteStrip", "find_text_columns", "find_white_strips", "split_columns"]

_FAR_GAP = 2.5  # of the characters' height: rows further apart are in different bands
_LINE_BREAK_SHARE = 0.6  # of a column's lines: minimum that end where the next word does not fit
_MIN_WORDS = 4  # of a line of running text
_MIN_LETTERS, _MIN_NARROW = 20, 6  # of a line of a narrow column, and its lines
_SURE_WORDS = 6  # of a line that is running text even if it is broken elsewhere, as verse is
_GUTTERS = ((12, 0.3, 0.7), (6, 0.4, 1.1), (3, 0.9, 1.1))
"""Lines on each side of a gutter, and its least width in characters' heights and usual spaces."""
_MAX_BANDS = 6  # of rows that are tried
_MAX_COLUMNS = 8  # more are a table, or monospaced words that lie above each other
_MAX_ONGOING = 500  # white strips that a row may go on with: more are no page of text


@dataclass(frozen=True, slots=True)
class WhiteStrip:
    """A white rectangle: rows ``start`` to before ``stop``, and its left and right edges.

    ``lines`` is the number of rows beside it, on the side that has fewer.
    """

    start: int
    stop: int
    left: float
    right: float
    lines: int


def find_text_columns(rows: list[TextRow]) -> tuple[int, int, Gaps] | None:
    """Return the first row, the end and the gutters of the longest band of text columns."""
    if len(rows) < 3:
        return None
    size, space = median(run.size for row in rows for run in row), _usual_space(rows)
    bands: dict[tuple[int, int], int] = {}
    for strip in find_white_strips(rows):
        band = strip.start, strip.stop
        bands[band] = max(strip.lines, bands.get(band, 0))
    for start, stop in sorted(bands, key=lambda band: -bands[band])[:_MAX_BANDS]:
        least = _least_width(bands[start, stop], size, space)
        gutters = _common_gutters(rows[start:stop], least)
        if 0 < len(gutters) < _MAX_COLUMNS and _are_text(rows[start:stop], gutters):
            return *_trim_band(rows, start, stop, gutters), gutters
    return None


def find_white_strips(rows: list[TextRow]) -> list[WhiteStrip]:
    """Return the maximal white rectangles that are as wide as a gutter, with lines beside them."""
    size = median(run.size for row in rows for run in row)
    space = _usual_space(rows)
    strips = _iter_white_strips(rows, _least_width(_GUTTERS[0][0], size, space), size)
    return [
        strip
        for strip in strips
        if strip.right - strip.left >= _least_width(strip.lines, size, space)
    ]


def _least_width(lines: int, size: float, space: float) -> float:
    """Return the least width of a gutter: spaces of many lines are never above each other."""
    return next(
        (max(width * size, times * space) for least, width, times in _GUTTERS if lines >= least),
        math.inf,
    )


def _usual_space(rows: list[TextRow]) -> float:
    """Return the median space between words that stand apart in a row."""
    spaces = []
    for row in rows:
        # right-to-left words come in reading order
        words = sorted((word for run in row for word in run.words), key=lambda word: word[1])
        spaces += [next_[1] - word[2] for word, next_ in pairwise(words) if next_[1] > word[2]]
    return median(spaces) if spaces else 0.0


def split_columns(band: list[TextRow], gutters: Gaps) -> list[list[TextRun]]:
    """Return the runs of each column, in reading order; runs across a gutter are split."""
    columns: list[list[TextRun]] = [[] for _ in range(len(gutters) + 1)]
    middles = [(start + end) / 2 for start, end in gutters]
    for row in band:
        pieces = [piece for run in row for piece in _split_run(run, gutters, middles)]
        for column, cell in zip(columns, split_cells(pieces, gutters), strict=True):
            column += cell
    if sum(run.is_right_to_left for row in band for run in row) * 2 > sum(map(len, band)):
        columns.reverse()
    return columns


def _split_run(run: TextRun, gutters: Gaps, middles: list[float]) -> Iterator[TextRun]:
    first = bisect_right(gutters, (run.left, math.inf))  # that starts within the run
    if run.table >= 0 or first == len(gutters) or gutters[first][1] >= run.right:
        yield run
        return
    parts: dict[int, list[tuple[str, float, float]]] = {}
    for word in run.words:
        middle = (word[1] + word[2]) / 2
        parts.setdefault(bisect_left(middles, middle), []).append(word)
    for words in parts.values():
        left, right = min(word[1] for word in words), max(word[2] for word in words)
        # ``dataclasses.replace`` takes twice as long, and there are many words
        edges = left, run.top, right, run.bottom
        yield TextRun(words, *edges, run.size, run.type_size, run.is_bold, run.is_fixed)


def _free_spans(row: TextRow, left: float, right: float, least: float) -> Gaps:
    """Return the parts between the page's edges of text that no word of a row covers."""
    words = sorted(
        (word[1:] for run in row for word in run.words or [("", run.left, run.right)]),
    )
    spans, end = [], left
    for start, stop in [*words, (right, right)]:
        if start - end >= least:
            spans.append((end, start))
        end = max(end, stop)
    return spans


def _iter_white_strips(rows: list[TextRow], least: float, size: float) -> Iterator[WhiteStrip]:
    left = min(run.left for row in rows for run in row)
    right = max(run.right for row in rows for run in row)
    lefts = [min(run.left for run in row) for row in rows]
    rights = [max(run.right for run in row) for row in rows]
    ongoing: dict[tuple[float, float], int] = {}
    bottom = float("inf")
    for index, row in enumerate([*rows, []]):
        longer: dict[tuple[float, float], int] = {}
        free = _free_spans(row, left, right, least) if row else []
        ends = [end for _, end in free]
        is_near = bool(row) and min(run.top for run in row) - bottom <= _FAR_GAP * size
        for (start, end), first in ongoing.items() if is_near else ():
            for strip in _overlaps((start, end), free, ends, least):
                longer[strip] = min(first, longer.get(strip, first))
        for (start, end), first in ongoing.items():
            if longer.get((start, end), index) > first and index - first >= _GUTTERS[-1][0]:
                before = sum(edge < start for edge in lefts[first:index])
                lines = min(before, sum(edge > end for edge in rights[first:index]))
                yield WhiteStrip(first, index, start, end, lines)
        ongoing = {**dict.fromkeys(free, index), **longer}
        if len(ongoing) > _MAX_ONGOING:
            tallest = sorted(ongoing.items(), key=lambda strip: strip[1])
            ongoing = dict(tallest[:_MAX_ONGOING])
        bottom = max((run.bottom for run in row), default=0.0)


def _overlaps(strip: tuple[float, float], free: Gaps, ends: list[float], least: float) -> Gaps:
    """Return the parts of a strip that lie in the spans of a row, which end at ``ends``."""
    start, stop = strip
    index = bisect_right(ends, start)
    parts: Gaps = []
    while index < len(free) and free[index][0] < stop:
        left, right = max(start, free[index][0]), min(stop, ends[index])
        if right - left >= least:
            parts.append((left, right))
        index += 1
    return parts


def _common_gutters(band: list[TextRow], least: float) -> Gaps:
    """Return the strips that no row of a band crosses and that enough lines stand beside."""
    left = min(run.left for row in band for run in row)
    right = max(run.right for row in band for run in row)
    common: Gaps = [(left, right)]
    for row in band:
        free = _free_spans(row, left, right, least)
        ends = [end for _, end in free]
        common = [strip for one in common for strip in _overlaps(one, free, ends, least)]
    return [strip for strip in common if left < strip[0] and strip[1] < right]


def _are_text(band: list[TextRow], gutters: Gaps) -> bool:
    """Return whether all columns but short ones hold running text or ruled tables."""
    columns = split_columns(band, gutters)
    heights = [len({run.middle for run in column}) for column in columns]
    texts = 0
    for height, column in sorted(zip(heights, columns, strict=True), key=lambda one: -one[0]):
        if any(run.table >= 0 for run in column) or _is_running_text(group_rows(column)):
            texts += 1
        elif 2 * height >= max(heights):
            return False
    return texts >= 2


def _is_running_text(lines: list[TextRow]) -> bool:
    """Return whether lines hold as many words as fit, and not only a few."""
    if len(lines) < 3:
        return False
    words = [[word for run in line for word in run.words] for line in lines]
    typical = median(sum(any(map(str.isalpha, word[0])) for word in line) for line in words)
    letters = median(sum(sum(map(str.isalpha, word[0])) for word in line) for line in words)
    if typical < _MIN_WORDS and (letters < _MIN_LETTERS or len(lines) < _MIN_NARROW):
        return False
    margin = max(word[2] for line in words for word in line)
    space = 0.25 * median(run.size for line in lines for run in line)
    full = sum(
        above[-1][2] + space + below[0][2] - below[0][1] >= margin - space
        for above, below in pairwise(words)
    )
    return typical >= _SURE_WORDS or full >= _LINE_BREAK_SHARE * (len(lines) - 1)


def _trim_band(rows: list[TextRow], start: int, stop: int, gutters: Gaps) -> tuple[int, int]:
    """Leave out the end of a paragraph above columns, and what stands close to text below."""

    def is_first_only(row: TextRow) -> bool:
        return max(run.right for run in row) <= gutters[0][0]

    def space_above(index: int) -> float:
        return min(r.top for r in rows[index]) - max(r.bottom for r in rows[index - 1])

    size = median(run.size for run in rows[start])
    if start and is_first_only(rows[start]) and space_above(start) <= 0.6 * size:
        start += 1
    while (
        stop < len(rows)
        and is_first_only(rows[stop - 1])
        and space_above(stop) < space_above(stop - 1)
    ):
        stop -= 1
    return start, stop
