"""The characters of a PDF page as runs: pieces of a line with their place and type.

Knows PDFium's text page; nothing of lines, columns or tables. Coordinates are points, with y
growing downward, turned so that the page's main direction of writing reads from left to right.
"""

from __future__ import annotations

import ctypes
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CUT", "Box", "Glyphs", "Run", "read_glyphs", "turn_box"]

CUT = "\u00ad"
"""Ends a run whose last word the line's end has cut."""

_HYPHENS = frozenset({0x02, 0xAD, 0xFFFE})
_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}
_SPACES = frozenset({0x20, 0x09, 0x0A, 0x0D, 0xA0, 0x3000, *range(0x2000, 0x200B)})
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_BOLD = re.compile(r"bold|black|heavy|semibold|demi|cmbx|cmssbx|medi$", re.IGNORECASE)
_FIXED = re.compile(r"mono|courier|consolas|typewriter|cmtt|menlo", re.IGNORECASE)
_BOLD_WEIGHT = 600
_SMALLEST = 1.0  # points; nobody reads smaller print, but a model would
_OVERFLOW = 0.5  # of the page: tables and lines too long for it are careless, not hidden
_WIDE_GAP = 1.0  # of the characters' height; wider ends the run
_SPACE = 0x20

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(slots=True)
class Run:
    """Words that follow one another on a line without a wide gap.

    ``words`` are their texts, each with where it begins and ends; ``size`` is the height of the
    tallest character as the font has it, ``type_size`` that of the type as its maker chose it, both
    in points; ``table`` is the number of the ruled table that the run stands for, or -1.
    """

    words: list[tuple[str, float, float]]
    left: float
    top: float
    right: float
    bottom: float
    size: float
    type_size: float = 0.0
    is_bold: bool = False
    is_fixed: bool = False
    table: int = -1

    @property
    def text(self) -> str:
        """The words with single spaces between them."""
        return " ".join(word[0] for word in self.words)

    @property
    def middle(self) -> float:
        """Half-way between top and bottom."""
        return (self.top + self.bottom) / 2

    @property
    def is_right_to_left(self) -> bool:
        """Whether its first letter is of a script written from the right."""
        return bool(self.words and _RIGHT_TO_LEFT.search(self.words[0][0][:8]))


@dataclass(slots=True)
class Glyphs:
    """A page's runs in the order they were drawn, those turned aside, and what nobody can see.

    ``turn`` is the main direction of writing, in degrees counter-clockwise.
    """

    runs: list[Run] = field(default_factory=list)
    aside: list[list[Run]] = field(default_factory=list)
    hidden: int = 0
    turn: int = 0


def read_glyphs(raw: Any, box: Box) -> Glyphs:
    """Read the runs of a page.

    Args:
        raw: PDFium's handle of the text page.
        box: What of the page is seen, as PDF has it: left, bottom, right, top.
    """
    found = Glyphs()
    by_turn: dict[int, list[_Glyph]] = {}
    last = -1
    for glyph in _glyphs(raw):
        if glyph.code == _SPACE:
            if last >= 0:
                by_turn[last].append(glyph)
            continue
        last = glyph.turn
        by_turn.setdefault(last, []).append(glyph)
    counts = Counter({turn: len(glyphs) for turn, glyphs in by_turn.items()})
    for turn, _ in counts.most_common():
        seen = turn_box((box[0], -box[3], box[2], -box[1]), turn)
        runs: list[Run] = []
        for run in _runs(by_turn[turn], turn, raw):
            if _is_hidden(run, seen) and not (runs and _goes_on(runs[-1], run)):
                found.hidden += sum(len(word[0]) for word in run.words)
            else:
                runs.append(run)
        if not found.runs:
            found.runs, found.turn = runs, turn
        elif runs:
            found.aside.append(runs)
    return found


@dataclass(slots=True)
class _Glyph:
    """One character: its code, its place as PDF has it, its direction, its number."""

    code: int
    left: float
    bottom: float
    right: float
    top: float
    turn: int
    index: int


def _glyphs(raw: Any) -> Iterator[_Glyph]:
    import pypdfium2.raw as pdfium

    rectangle = pdfium.FS_RECTF()
    reference = ctypes.byref(rectangle)
    code_of, box_of = pdfium.FPDFText_GetUnicode, pdfium.FPDFText_GetLooseCharBox
    angle_of = pdfium.FPDFText_GetCharAngle
    for index in range(pdfium.FPDFText_CountChars(raw)):
        code = code_of(raw, index)
        if code in _SPACES:
            yield _Glyph(_SPACE, 0, 0, 0, 0, 0, index)
            continue
        if not code or not box_of(raw, index, reference):
            continue
        angle = angle_of(raw, index)
        turn = -round(math.degrees(angle)) % 360 if angle > 0 else 0  # PDFium's is clockwise
        yield _Glyph(
            code, rectangle.left, rectangle.bottom, rectangle.right, rectangle.top, turn, index
        )


def _is_hidden(run: Run, box: Box) -> bool:
    """Say whether a whole run is far off the page or too small for anybody to read."""
    left, top, right, bottom = box
    is_tiny = max(run.bottom - run.top, (run.right - run.left) / 50) < _SMALLEST
    across, down = _OVERFLOW * (right - left), _OVERFLOW * (bottom - top)
    is_off = (
        run.right < left - across
        or run.left > right + across
        or run.bottom < top - down
        or run.top > bottom + down
    )
    return is_tiny or is_off


def _goes_on(before: Run, run: Run) -> bool:
    """Say whether a run goes on a line that is too long for its page."""
    overlap = min(before.bottom, run.bottom) - max(before.top, run.top)
    is_level = overlap >= 0.5 * min(before.size, run.size) and run.size >= _SMALLEST
    return is_level and 0 <= run.left - before.right <= 4 * run.size


def _runs(glyphs: Iterable[_Glyph], turn: int, raw: Any) -> Iterator[Run]:
    """Join characters of one direction to runs."""
    run: Run | None = None
    before: Box = (0, 0, 0, 0)
    is_spaced = False
    for glyph in glyphs:
        if glyph.code == _SPACE:
            is_spaced = True
            continue
        place = turn_box((glyph.left, -glyph.top, glyph.right, -glyph.bottom), turn)
        text = _text_of(glyph.code)
        if not text:
            continue
        if run is not None and _continues(run, before, place):
            _extend(run, text, place, is_spaced=is_spaced)
        else:
            if run is not None:
                yield run
            words = [(text, place[0], place[2])]
            height = place[3] - place[1]
            run = Run(words, *place, height, *_type_of(raw, glyph.index, height))
        before, is_spaced = place, False
    if run is not None:
        yield run


def _extend(run: Run, text: str, place: Box, *, is_spaced: bool) -> None:
    if is_spaced:
        run.words.append((text, place[0], place[2]))
    else:
        word, left, right = run.words[-1]
        run.words[-1] = (word + text, min(left, place[0]), max(right, place[2]))
    run.left, run.right = min(run.left, place[0]), max(run.right, place[2])
    run.top, run.bottom = min(run.top, place[1]), max(run.bottom, place[3])
    run.size = max(run.size, place[3] - place[1])


def _text_of(code: int) -> str:
    if code in _HYPHENS:
        return CUT
    if code in _LIGATURES:
        return _LIGATURES[code]
    if 0x80 <= code < 0xA0:  # fonts without a map of characters: Windows' quotes and dashes
        return bytes([code]).decode("cp1252", "ignore")
    return "" if code < 0x20 or code == 0x7F else chr(code)


def _continues(run: Run, before: Box, place: Box) -> bool:
    """Say whether a character at ``place`` goes on the run whose last one was at ``before``."""
    height = min(before[3] - before[1], place[3] - place[1])
    overlap = min(run.bottom, place[3]) - max(run.top, place[1])
    if overlap < 0.4 * height:
        return False
    gap = max(place[0] - before[2], before[0] - place[2])
    return gap <= _WIDE_GAP * max(run.size, 1.0)


def turn_box(box: Box, turn: int) -> Box:
    """Return a box (y downward) after the page is turned so that ``turn`` degrees are level."""
    if not turn:
        return box
    radians = math.radians(turn)
    cos, sin = math.cos(radians), math.sin(radians)
    corners = [
        (x * cos - y * sin, x * sin + y * cos) for x in (box[0], box[2]) for y in (box[1], box[3])
    ]
    xs, ys = [one[0] for one in corners], [one[1] for one in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _type_of(raw: Any, index: int, height: float) -> tuple[float, bool, bool]:
    """Return a character's type size, whether it is bold, and whether its font has one width."""
    import pypdfium2.raw as pdfium

    buffer, flags, matrix = ctypes.create_string_buffer(128), ctypes.c_int(), pdfium.FS_MATRIX()
    size = pdfium.FPDFText_GetFontInfo(raw, index, buffer, 128, ctypes.byref(flags))
    name = buffer.value.decode("utf-8", "replace") if 0 < size <= 128 else ""
    weight = pdfium.FPDFText_GetFontWeight(raw, index)
    is_bold = bool(_BOLD.search(name)) or weight >= _BOLD_WEIGHT
    points = pdfium.FPDFText_GetFontSize(raw, index)
    if pdfium.FPDFText_GetMatrix(raw, index, ctypes.byref(matrix)):
        points *= math.hypot(matrix.c, matrix.d)
    if not 0.4 * height <= points <= 2.5 * height:  # some makers scale elsewhere
        points = height
    return points, is_bold, bool(flags.value & 1) or bool(_FIXED.search(name))
