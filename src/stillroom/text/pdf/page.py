"""PDF text extraction from a page: characters and annotations as text runs, rows and gaps.

Input is PDFium's text page and its annotations. Coordinates are points, with y growing downward,
rotated so that the page's main writing direction is left to right. Tables and columns are found in
``layout`` and ``tables``.
"""

from __future__ import annotations

import ctypes
import math
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillroom.text.unicode import raise_number

__all__ = [
    "SOFT_HYPHEN",
    "Box",
    "Gaps",
    "PageAnnotations",
    "PageText",
    "TextRow",
    "TextRun",
    "find_row_gaps",
    "group_rows",
    "intersect_gaps",
    "is_inside",
    "join_runs",
    "read_annotations",
    "read_page_text",
    "rotate_box",
    "split_cells",
]


SOFT_HYPHEN = "\u00ad"
"""Ends a run whose last word is split at the line end."""

_HYPHENS = frozenset({0x02, 0xAD, 0xFFFE})
_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}
_SPACES = frozenset({0x20, 0x09, 0x0A, 0x0D, 0xA0, 0x3000, *range(0x2000, 0x200B)})
# Codes of private use have a meaning in their font alone: the list marks of Symbol and Wingdings
# are known, others, as variants of brackets, part words.
_PRIVATE = range(0xE000, 0xF900)
_PRIVATE_BULLETS = dict.fromkeys((0xF076, 0xF0A7, 0xF0A8, 0xF0B7, 0xF0D8), "•")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_BOLD = re.compile(r"bold|black|heavy|semibold|demi|cmbx|cmssbx|medi$", re.IGNORECASE)
_MONOSPACE = re.compile(r"mono|courier|consolas|typewriter|cmtt|menlo", re.IGNORECASE)
_BOLD_WEIGHT = 600
_MIN_SIZE = 1.0  # points; smaller print is invisible to a person, but not to a model
_OVERFLOW = 0.5  # of the page: tables and lines that run over by less are not hidden text
_WIDE_GAP = 1.0  # of the characters' height; wider gaps end the run
_MAX_RAISED, _MIN_RISE = 0.9, 0.15  # of the characters' height: of superscripts
_NOTED = re.compile(r"[^\W\d_]{4}[)\]”’\"']?$")  # longer than units with a power, as km²
_RAISED = "[⁰¹²³⁴⁵⁶⁷⁸⁹]"
_BASE_LETTER = r"[^\W\d_⁰¹²³⁴⁵⁶⁷⁸⁹₀-₉]"  # other numerals are "letters" to \w, but not to \d
# After two digits, one or two letters are the sign of an element: "³⁵Cl".
_NOTE_START = re.compile(
    rf"({_RAISED}(?={_BASE_LETTER}{{2}})|{_RAISED}{{2}}(?={_BASE_LETTER}{{3}}))(.+)"
)
_SPACE = 0x20
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(slots=True)
class TextRun:
    """Consecutive words on a line without a wide gap.

    ``words`` are their texts, each with left and right edge; ``size`` is the height of the tallest
    character in the font, ``type_size`` the nominal font size, both in points; ``table`` is the
    number of the ruled table that the run is a placeholder for, or -1.
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
        """The words joined by single spaces."""
        return " ".join(word[0] for word in self.words)

    @property
    def middle(self) -> float:
        """Half-way between top and bottom."""
        return (self.top + self.bottom) / 2

    @property
    def is_right_to_left(self) -> bool:
        """Whether its first letter is of a right-to-left script."""
        return bool(self.words and _RIGHT_TO_LEFT.search(self.words[0][0][:8]))


@dataclass(slots=True)
class PageText:
    """A page's runs in drawing order, rotated runs, and the count of hidden characters.

    ``turn`` is the main writing direction, in degrees counter-clockwise.
    """

    runs: list[TextRun] = field(default_factory=list)
    aside: list[list[TextRun]] = field(default_factory=list)
    hidden: int = 0
    turn: int = 0


def read_page_text(raw: Any, box: Box) -> PageText:
    """Read the runs of a page.

    ``box`` is the visible part in PDF coordinates: left, bottom, right, top.
    """
    page_text = PageText()
    by_turn: dict[int, list[_Glyph]] = {}
    last = -1
    for glyph in _read_glyphs(raw):
        if glyph.code == _SPACE:
            if last >= 0:
                by_turn[last].append(glyph)
            continue
        last = glyph.turn
        by_turn.setdefault(last, []).append(glyph)
    counts = Counter({turn: len(glyphs) for turn, glyphs in by_turn.items()})
    for turn, _ in counts.most_common():
        visible = rotate_box((box[0], -box[3], box[2], -box[1]), turn)
        runs: list[TextRun] = []
        for run in _join_runs(by_turn[turn], turn, raw):
            if _is_hidden(run, visible) and not (runs and _is_overflow(runs[-1], run)):
                page_text.hidden += sum(len(word[0]) for word in run.words)
            else:
                runs.append(run)
        if not page_text.runs:
            page_text.runs, page_text.turn = runs, turn
        elif runs:
            page_text.aside.append(runs)
    return page_text


@dataclass(slots=True)
class _Glyph:
    """One character: its code, its box in PDF coordinates, its direction, its index."""

    code: int
    left: float
    bottom: float
    right: float
    top: float
    turn: int
    index: int


def _read_glyphs(raw: Any) -> Iterator[_Glyph]:
    import pypdfium2.raw as pdfium

    rectangle = pdfium.FS_RECTF()
    reference = ctypes.byref(rectangle)
    code_of, box_of = pdfium.FPDFText_GetUnicode, pdfium.FPDFText_GetLooseCharBox
    angle_of = pdfium.FPDFText_GetCharAngle
    for index in range(pdfium.FPDFText_CountChars(raw)):
        code = code_of(raw, index)
        if code in _SPACES or (code in _PRIVATE and code not in _PRIVATE_BULLETS):
            yield _Glyph(_SPACE, 0, 0, 0, 0, 0, index)
            continue
        if not code or not box_of(raw, index, reference):
            continue
        angle = angle_of(raw, index)
        turn = -round(math.degrees(angle)) % 360 if angle > 0 else 0  # PDFium's is clockwise
        yield _Glyph(
            code, rectangle.left, rectangle.bottom, rectangle.right, rectangle.top, turn, index
        )


def _is_hidden(run: TextRun, box: Box) -> bool:
    """Return whether a whole run is far off the page or too small to read."""
    left, top, right, bottom = box
    is_tiny = max(run.bottom - run.top, (run.right - run.left) / 50) < _MIN_SIZE
    across, down = _OVERFLOW * (right - left), _OVERFLOW * (bottom - top)
    is_off = (
        run.right < left - across
        or run.left > right + across
        or run.bottom < top - down
        or run.top > bottom + down
    )
    return is_tiny or is_off


def _is_overflow(before: TextRun, run: TextRun) -> bool:
    """Return whether a run continues a line that is too long for its page."""
    overlap = min(before.bottom, run.bottom) - max(before.top, run.top)
    is_level = overlap >= 0.5 * min(before.size, run.size) and run.size >= _MIN_SIZE
    return is_level and 0 <= run.left - before.right <= 4 * run.size


def _join_runs(glyphs: Iterable[_Glyph], turn: int, raw: Any) -> Iterator[TextRun]:
    """Join characters of one direction into runs."""
    run: TextRun | None = None
    before: Box = (0, 0, 0, 0)
    is_spaced = False
    for glyph in glyphs:
        if glyph.code == _SPACE:
            is_spaced = True
            continue
        place = rotate_box((glyph.left, -glyph.top, glyph.right, -glyph.bottom), turn)
        text = _decode_code(glyph.code)
        if not text:
            continue
        if run is not None and _continues_run(run, before, place):
            if (text.isdecimal() or text in "+-−") and _is_raised(run, before, place):
                is_spaced = text.isdecimal() and bool(_NOTED.search(run.words[-1][0]))
                text = raise_number(text)
            elif text.isalpha() and _is_lowered(run, place):
                _raise_start(run, *_font_of(raw, glyph.index, place[3] - place[1]))
            _extend_run(run, text, place, is_spaced=is_spaced)
        else:
            if run is not None:
                yield _part_note(run)
            words = [(text, place[0], place[2])]
            height = place[3] - place[1]
            run = TextRun(words, *place, height, *_font_of(raw, glyph.index, height))
        before, is_spaced = place, False
    if run is not None:
        yield _part_note(run)


def _raise_start(run: TextRun, type_size: float, is_bold: bool, is_fixed: bool) -> None:
    """Make the number of a run a superscript before text in that font."""
    ((text, left, right),) = run.words
    run.words[0] = raise_number(text), left, right
    run.type_size, run.is_bold, run.is_fixed = type_size, is_bold, is_fixed


def _part_note(run: TextRun) -> TextRun:
    """Return a run with the sign of a footnote at its beginning parted from the first word."""
    text, left, right = run.words[0]
    if match := _NOTE_START.fullmatch(text):
        edge = left + (right - left) * len(match[1]) / len(text)
        run.words[:1] = [(match[1], left, edge), (match[2], edge, right)]
    return run


def _extend_run(run: TextRun, text: str, place: Box, *, is_spaced: bool) -> None:
    if is_spaced:
        run.words.append((text, place[0], place[2]))
    else:
        word, left, right = run.words[-1]
        run.words[-1] = (word + text, min(left, place[0]), max(right, place[2]))
    run.left, run.right = min(run.left, place[0]), max(run.right, place[2])
    run.top, run.bottom = min(run.top, place[1]), max(run.bottom, place[3])
    run.size = max(run.size, place[3] - place[1])


def _decode_code(code: int) -> str:
    if code in _HYPHENS:
        return SOFT_HYPHEN
    if known := _LIGATURES.get(code) or _PRIVATE_BULLETS.get(code):
        return known
    if 0x80 <= code < 0xA0:  # fonts without a character map: Windows quotes and dashes
        return bytes([code]).decode("cp1252", "ignore")
    return "" if code < 0x20 or code == 0x7F else chr(code)


def _continues_run(run: TextRun, before: Box, place: Box) -> bool:
    """Return whether a character at ``place`` continues the run that ends at ``before``."""
    height = min(before[3] - before[1], place[3] - place[1])
    overlap = min(run.bottom, place[3]) - max(run.top, place[1])
    if overlap < 0.4 * height:
        return False
    gap = max(place[0] - before[2], before[0] - place[2])
    return gap <= _WIDE_GAP * max(run.size, 1.0)


def _is_raised(run: TextRun, before: Box, place: Box) -> bool:
    """Return whether a character is a superscript: smaller, raised, and without a gap before."""
    is_small = place[3] - place[1] <= _MAX_RAISED * run.size
    is_high = run.bottom - place[3] >= _MIN_RISE * run.size
    return is_small and is_high and abs(place[0] - before[2]) <= _MIN_RISE * run.size


def _is_lowered(run: TextRun, place: Box) -> bool:
    """Return whether a run is one number so far, a superscript of the character at ``place``."""
    height = place[3] - place[1]
    is_number = len(run.words) == 1 and run.words[0][0].isdecimal()
    is_small = run.size <= _MAX_RAISED * height
    return is_number and is_small and place[3] - run.bottom >= _MIN_RISE * height


def rotate_box(box: Box, turn: int) -> Box:
    """Return a box (y downward) after rotating the page so that ``turn`` degrees are level."""
    if not turn:
        return box
    radians = math.radians(turn)
    cos, sin = math.cos(radians), math.sin(radians)
    corners = [
        (x * cos - y * sin, x * sin + y * cos) for x in (box[0], box[2]) for y in (box[1], box[3])
    ]
    xs, ys = [corner[0] for corner in corners], [corner[1] for corner in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _font_of(raw: Any, index: int, height: float) -> tuple[float, bool, bool]:
    """Return a character's font size, whether it is bold, and whether the font is monospaced."""
    import pypdfium2.raw as pdfium

    buffer, flags, matrix = ctypes.create_string_buffer(128), ctypes.c_int(), pdfium.FS_MATRIX()
    size = pdfium.FPDFText_GetFontInfo(raw, index, buffer, 128, ctypes.byref(flags))
    name = buffer.value.decode("utf-8", "replace") if 0 < size <= 128 else ""
    weight = pdfium.FPDFText_GetFontWeight(raw, index)
    is_bold = bool(_BOLD.search(name)) or weight >= _BOLD_WEIGHT
    points = pdfium.FPDFText_GetFontSize(raw, index)
    if pdfium.FPDFText_GetMatrix(raw, index, ctypes.byref(matrix)):
        points *= math.hypot(matrix.c, matrix.d)
    if not 0.4 * height <= points <= 2.5 * height:  # some producers scale elsewhere
        points = height
    return points, is_bold, bool(flags.value & 1) or bool(_MONOSPACE.search(name))


TextRow = list[TextRun]
Gaps = list[tuple[float, float]]


def group_rows(runs: Sequence[TextRun]) -> list[TextRow]:
    """Group runs into rows, from top to bottom, each from left to right."""
    rows: list[TextRow] = []
    edges: list[tuple[float, float]] = []
    for run in sorted(runs, key=lambda run: (run.middle, run.left)):
        for index in range(len(rows) - 1, max(len(rows) - 4, -1), -1):
            top, bottom = edges[index]
            overlap = min(bottom, run.bottom) - max(top, run.top)
            if overlap >= 0.5 * min(bottom - top, run.bottom - run.top):
                rows[index].append(run)
                break
        else:
            rows.append([run])
            edges.append((run.top, run.bottom))
    for row in rows:
        row.sort(key=lambda run: run.left)
    return rows


def join_runs(runs: Sequence[TextRun]) -> str:
    """Return the runs of one line as text, in reading order for right-to-left scripts."""
    turned = sum(run.is_right_to_left for run in runs) * 2 > len(runs)
    ordered = sorted(runs, key=lambda run: run.left, reverse=turned)
    return " ".join(text for run in ordered if (text := run.text))


def is_inside(run: TextRun, box: Box) -> bool:
    """Return whether the middle of a run is within a box."""
    middle = (run.left + run.right) / 2
    return box[0] <= middle <= box[2] and box[1] <= run.middle <= box[3]


def find_row_gaps(row: TextRow, least: float) -> Gaps:
    """Return the gaps between a row's runs that are wide enough to separate columns."""
    gaps: Gaps = []
    end = row[0].right
    for run in row[1:]:
        if run.left - end >= least:
            gaps.append((end, run.left))
        end = max(end, run.right)
    return gaps


def intersect_gaps(gutters: Gaps, row: TextRow, least: float) -> Gaps:
    """Return the parts of gaps that a row leaves free."""
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


def split_cells(row: TextRow, gutters: Gaps) -> list[TextRow]:
    """Return a row's runs by column."""
    cells: list[TextRow] = [[] for _ in range(len(gutters) + 1)]
    middles = [(start + end) / 2 for start, end in gutters]
    for run in row:
        cells[bisect_left(middles, (run.left + run.right) / 2)].append(run)
    return cells


_MAX_ANNOTATIONS = 2000
_NOTE_TYPES = {1: "Note", 3: "Text", 9: "Highlight", 10: "Underline", 12: "Strikeout", 13: "Stamp"}
_LINK, _WIDGET = 2, 20
_TEXT_FIELDS = {4, 5, 6}  # combo box, list box, text field
_CHECK_FIELDS = {2, 3}  # check box, radio button
_HIDDEN = 2  # the flag of hidden annotations


@dataclass(slots=True)
class PageAnnotations:
    """A page's form fields and notes as lines of text, its links, and the count of hidden ones."""

    fields: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    hidden: int = 0


def read_annotations(document: Any, page: Any, form: Any | None) -> PageAnnotations:
    """Read the annotations of a page."""
    import pypdfium2.raw as pdfium

    annotations = PageAnnotations()
    for index in range(min(pdfium.FPDFPage_GetAnnotCount(page), _MAX_ANNOTATIONS)):
        annotation = pdfium.FPDFPage_GetAnnot(page, index)
        if not annotation:
            continue
        try:
            _read_annotation(annotation, document, form, annotations)
        finally:
            pdfium.FPDFPage_CloseAnnot(annotation)
    return annotations


def _read_annotation(
    annotation: Any, document: Any, form: Any | None, annotations: PageAnnotations
) -> None:
    import pypdfium2.raw as pdfium

    kind = pdfium.FPDFAnnot_GetSubtype(annotation)
    if kind == _LINK:
        target = _link_target(document, pdfium.FPDFAnnot_GetLink(annotation))
        if target:
            annotations.links.append(target)
        return
    is_field = kind == _WIDGET and form is not None
    if not is_field and kind not in _NOTE_TYPES:
        return
    text = _form_field(form, annotation) if is_field else _note_line(annotation, _NOTE_TYPES[kind])
    if not text:
        return
    if pdfium.FPDFAnnot_GetFlags(annotation) & _HIDDEN:
        annotations.hidden += len(text)
    else:
        (annotations.fields if is_field else annotations.notes).append(text)


def _form_field(form: Any, annotation: Any) -> str:
    """Return a filled form field as 'name: value', or an empty string."""
    import pypdfium2.raw as pdfium

    kind = pdfium.FPDFAnnot_GetFormFieldType(form, annotation)
    name = _read_string(pdfium.FPDFAnnot_GetFormFieldAlternateName, form, annotation)
    name = name or _read_string(pdfium.FPDFAnnot_GetFormFieldName, form, annotation)
    if kind in _TEXT_FIELDS:
        value = _read_string(pdfium.FPDFAnnot_GetFormFieldValue, form, annotation)
    elif kind in _CHECK_FIELDS and pdfium.FPDFAnnot_IsChecked(form, annotation):
        value = _read_string(pdfium.FPDFAnnot_GetFormFieldExportValue, form, annotation) or "yes"
    else:
        value = ""
    return f"{name or 'Field'}: {value}" if value else ""


def _note_line(annotation: Any, title: str) -> str:
    import pypdfium2.raw as pdfium

    content = _read_string(pdfium.FPDFAnnot_GetStringValue, annotation, b"Contents")
    return f"{title}: {content}" if content else ""


def _link_target(document: Any, link: Any) -> str:
    import pypdfium2.raw as pdfium

    action = pdfium.FPDFLink_GetAction(link) if link else None
    if not action:
        return ""
    size = pdfium.FPDFAction_GetURIPath(document, action, None, 0)
    if not 0 < size <= 4096:
        return ""
    buffer = ctypes.create_string_buffer(size)
    pdfium.FPDFAction_GetURIPath(document, action, buffer, size)
    return buffer.value.decode("utf-8", "replace")


def _read_string(read: Callable[..., int], *owner: Any) -> str:
    """Return a string that PDFium writes into a buffer as UTF-16, on one line."""
    size = read(*owner, None, 0)
    if not 2 < size <= 1 << 20:
        return ""
    import pypdfium2.raw as pdfium

    buffer = ctypes.create_string_buffer(size)
    read(*owner, ctypes.cast(buffer, ctypes.POINTER(pdfium.FPDF_WCHAR)), size)
    text = buffer.raw[:size].decode("utf-16-le", "replace").rstrip("\x00")
    return " ".join(text.split())
