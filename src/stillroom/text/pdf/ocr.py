"""OCR of page images by RapidOCR.

RapidOCR (Apache-2.0; PP-OCRv6 small, 31 MB of weights within the wheel, on ONNX Runtime) needs no
download. Rotated pages are turned upright first: RapidOCR turns each line by itself, but does not
restore their order. Lines that its detector joined across a gutter are split where the ink of many
lines leaves a white strip, and read again. Limitation: rotated Chinese or Japanese pages are not
detected, since their lines look like vertical text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, MissingExtraError
from stillroom.text.pdf.columns import find_white_strips, split_columns
from stillroom.text.pdf.page import Gaps, TextRun, group_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["OcrPage", "has_ocr", "recognize_text", "require_ocr_language"]

_LANGUAGES = frozenset(
    "af az bs ca cs cy da de en es et eu fi fr ga gl hr hu id is it ja ku la lb lt lv mi ms mt"  # noqa: SIM905
    " nl no oc pl pt qu rm ro sk sl sq sr sv sw tl tr uz vi zh".split()
)
_TALL_RATIO = 1.5
_MIN_LETTERS = 4  # of a line used to detect orientation
_MAX_LINES_CHECKED = 9
_MIN_CONFIDENCE = 0.8
_MIN_SCORE = 0.5  # lines below are no text
_MIN_ANGLE = 0.001  # radians: an image closer to level is left as it is
_CONTRAST = 15  # of 255: how much darker than its surroundings ink is
_MIN_INK = 2  # pixels in a column of a line
_RULE_SHARE = 0.95  # of a line's height: a column of ink that is a rule, not a letter
_LETTER_GAP = 0.2  # of the characters' height: wider gaps separate words
_SPACE = 0.6  # of the characters' height: letters further apart are of two words
_PADDING = 0.15  # of the characters' height, on each side of a part that is read again
_HAN_OR_KANA = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_CLASSIFIED_ASPECT = 4  # length to height that the classifier sees undistorted
_MIN_ASPECT = 4  # twice the length to height of a line whose angle is measured
_HEIGHT = 0.8  # the height of characters as a share of the detected box of a line


@dataclass(frozen=True, slots=True)
class OcrPage:
    """Text runs of an image, in pixels times a scale, and the mean confidence, 0 to 1.

    ``height`` is that of the upright image, times the scale; ``turn`` is its rotation to upright in
    degrees counter-clockwise.
    """

    runs: list[TextRun]
    confidence: float
    height: float = 0.0
    turn: int = 0


def has_ocr() -> bool:
    """Return whether the packages of the extra ``ocr`` are installed."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("rapidocr", "onnxruntime"))


def require_ocr_language(language: str, where: str) -> None:
    """Refuse a language whose script the packaged model does not cover.

    Raises:
        DataError: If it is none of the 50 languages in Latin, Chinese and Japanese script.
    """
    if language and language[:2].lower() not in _LANGUAGES:
        raise DataError(
            f"pictures in the language '{language}' cannot be read",
            code="document.ocr-language",
            where=where,
            expected="one of: " + ", ".join(sorted(_LANGUAGES)),
            next="read the file with another OCR program first, or set the limit ocr to 'never'",
        )


def recognize_text(pixels: NDArray[np.uint8], *, scale: float = 1.0) -> OcrPage:
    """Recognize the text of an image.

    Pixels are BGR, (Y, X, 3), uint8; ``scale`` is the factor from them to the runs' coordinates.

    Raises:
        MissingExtraError: If the extra ``ocr`` is not installed.
    """
    import numpy as np

    lines = _recognize_lines(pixels)
    quarters = _count_quarter_turns(pixels, lines)
    if quarters:
        pixels = np.ascontiguousarray(np.rot90(pixels, quarters))
        lines = _recognize_lines(pixels)
    pixels, lines = _level_lines(pixels, lines)
    lines = _read_again(pixels, lines)
    page = OcrPage([], 0.0, len(pixels) * scale, 90 * quarters)
    weights = total = 0.0
    lines = [line for line in lines if line.score >= _MIN_SCORE and line.text.strip()]
    inks = _find_ink_runs(pixels, [line.corners for line in lines])
    for line, ink in zip(lines, inks, strict=True):
        words = _place_words(line, ink)
        left, top, right, bottom = (scale * x for x in (ink.left, ink.top, ink.right, ink.bottom))
        height = _HEIGHT * (bottom - top)
        scaled = [(word, start * scale, end * scale) for word, start, end in words]
        page.runs.append(TextRun(scaled, left, top, right, bottom, height, height))
        weights += len(line.text)
        total += len(line.text) * line.score
    return replace(page, confidence=total / weights if weights else 0.0)


@dataclass(frozen=True, slots=True)
class _Line:
    """A recognized line: its corners (4, 2), and the boxes (4, 2) of its words or characters."""

    corners: NDArray[np.float64]
    text: str
    score: float
    pieces: tuple[tuple[str, NDArray[np.float64]], ...] = ()


def _recognize_lines(pixels: NDArray[np.uint8]) -> list[_Line]:
    result = _load_engine()(
        pixels,
        use_det=True,
        use_cls=True,
        use_rec=True,
        return_word_box=True,
        return_single_char_box=True,
        text_score=0.0,
    )
    if result.boxes is None or result.txts is None:
        return []
    return _pair_lines(result.boxes, result.txts, result.scores, result.word_results)


def _read_again(pixels: NDArray[np.uint8], lines: list[_Line]) -> list[_Line]:
    """Return lines, those across a gutter split, those of low confidence read as they stand.

    The detector joins lines of close columns; the classifier of lines that are upside down is
    sometimes wrong, for long lines above all.
    """
    import numpy as np

    pieces = _split_at_gutters(pixels, lines)
    again = [
        (index, corners)
        for index, line in enumerate(lines)
        for corners in pieces.get(index, [line.corners])
        if index in pieces or line.score < _MIN_CONFIDENCE
    ]
    if not again:
        return lines
    engine = _load_engine()
    boxes = np.array([corners for _, corners in again], np.float32)
    crops = engine.crop_text_regions(pixels, boxes)
    result = engine.recognize_txt(crops)
    words = engine.calc_word_boxes(crops, boxes, result) if all(result.txts) else None
    read = _pair_lines(boxes, result.txts, result.scores, words)
    better = dict(enumerate(lines))
    for (index, _), line in zip(again, read, strict=True):
        if index not in pieces:
            better[index] = max(line, lines[index], key=lambda line: line.score)
    whole = [line for index, line in better.items() if index not in pieces]
    return whole + [line for (index, _), line in zip(again, read, strict=True) if index in pieces]


def _split_at_gutters(
    pixels: NDArray[np.uint8], lines: list[_Line]
) -> dict[int, list[NDArray[np.float64]]]:
    """Return the corners of the parts of each line that crosses a white strip of the page.

    A part that another line holds already is left out.
    """
    import numpy as np

    level = [index for index, line in enumerate(lines) if not _is_sideways(line.corners)]
    runs = _find_ink_runs(pixels, [lines[index].corners for index in level])
    rows = group_rows(runs)
    if len(rows) < 3:
        return {}
    cuts: dict[int, Gaps] = {}
    for strip in find_white_strips(rows):
        for run in (run for row in rows[strip.start : strip.stop] for run in row):
            if run.left < strip.left and strip.right < run.right:
                cuts.setdefault(id(run), []).append((strip.left, strip.right))
    pieces: dict[int, list[NDArray[np.float64]]] = {}
    for index, run in zip(level, runs, strict=True):
        if id(run) not in cuts:
            continue
        parts = [
            part for column in split_columns([[run]], _unite(cuts[id(run)])) for part in column
        ]
        pad = _PADDING * run.size
        pieces[index] = [
            np.array([[left, run.top], [right, run.top], [right, run.bottom], [left, run.bottom]])
            for part in parts
            if not any(_holds(other, part) for other in runs if other is not run)
            for left, right in [(part.left - pad, part.right + pad)]
        ]
    return pieces


def _unite(gaps: Gaps) -> Gaps:
    """Return gaps in order, overlapping ones as one."""
    united: Gaps = []
    for start, end in sorted(gaps):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(end, united[-1][1]))
        else:
            united.append((start, end))
    return united


def _holds(other: TextRun, part: TextRun) -> bool:
    """Return whether a line covers most of a part of another one."""
    across = min(other.right, part.right) - max(other.left, part.left)
    down = min(other.bottom, part.bottom) - max(other.top, part.top)
    return across > 0.5 * (part.right - part.left) and down > 0.5 * (part.bottom - part.top)


def _find_ink_runs(pixels: NDArray[np.uint8], boxes: list[NDArray[np.float64]]) -> list[TextRun]:
    """Return one run for each box of a line, whose words are its ink without narrow gaps.

    Upright rules between columns are no ink.
    """
    import cv2
    import numpy as np

    grey = cv2.medianBlur(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), 3)
    runs = []
    heights = [float(np.ptp(box[:, 1])) for box in boxes]
    block = 2 * int(np.median(heights)) + 1 if boxes else 3
    ink = cv2.adaptiveThreshold(
        grey, 1, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY_INV, block, _CONTRAST
    )
    for box, height in zip(boxes, heights, strict=True):
        (left, top), (right, bottom) = box.min(axis=0), box.max(axis=0)
        x, y = max(int(left), 0), max(int(top), 0)
        part = ink[y : int(bottom) + 1, x : int(right) + 1]
        counts = part.sum(axis=0, dtype=np.int64)
        columns = np.flatnonzero((counts >= _MIN_INK) & (counts < _RULE_SHARE * len(part))) + x
        size = _HEIGHT * height
        splits = np.flatnonzero(np.diff(columns) > _LETTER_GAP * size) + 1
        words = [
            ("x", float(piece[0]), float(piece[-1] + 1))
            for piece in np.split(columns, splits)
            if len(piece)
        ] or [("x", float(left), float(right))]
        run = TextRun(words, words[0][1], float(top), words[-1][2], float(bottom), size, size)
        runs.append(run)
    return runs


def _pair_lines(boxes: Any, texts: Any, scores: Any, pieces: Any) -> list[_Line]:
    import numpy as np

    if pieces is None or len(pieces) != len(boxes):
        pieces = [()] * len(boxes)
    return [
        _Line(
            np.asarray(corners, np.float64),
            str(text),
            float(score),
            tuple((str(piece[0]), np.asarray(piece[2], np.float64)) for piece in within),
        )
        for corners, text, score, within in zip(boxes, texts, scores, pieces, strict=True)
    ]


def _level_lines(
    pixels: NDArray[np.uint8], lines: list[_Line]
) -> tuple[NDArray[np.uint8], list[_Line]]:
    """Return an image and its lines turned about the center so that lines are level.

    A scan that lies askew has lines whose upright boxes overlap; their order and height are read
    from the leveled ones. The angle is the median over lines, weighted by their length.
    """
    import cv2
    import numpy as np

    boxes = np.array([line.corners for line in lines]).reshape(-1, 4, 2)
    along = (boxes[:, 1] - boxes[:, 0]) + (boxes[:, 2] - boxes[:, 3])
    lengths = np.hypot(along[:, 0], along[:, 1])
    is_line = along[:, 0] >= _MIN_ASPECT * np.abs(boxes[:, 3] - boxes[:, 0]).max(axis=1)
    if not is_line.any():
        return pixels, lines
    angles = np.arctan2(along[is_line, 1], along[is_line, 0])
    order = np.argsort(angles)
    reached = np.cumsum(lengths[is_line][order])
    angle = float(angles[order][np.searchsorted(reached, reached[-1] / 2)])
    if abs(angle) < _MIN_ANGLE:
        return pixels, lines
    center = pixels.shape[1] / 2, pixels.shape[0] / 2
    matrix = cv2.getRotationMatrix2D(center, math.degrees(angle), 1.0)
    size = pixels.shape[1], pixels.shape[0]
    leveled = cv2.warpAffine(pixels, matrix, size, borderMode=cv2.BORDER_REPLICATE)

    def turn(box: NDArray[np.float64]) -> NDArray[np.float64]:
        turned: NDArray[np.float64] = box @ matrix[:, :2].T + matrix[:, 2]
        return turned

    return np.asarray(leveled, np.uint8), [
        replace(
            line,
            corners=turn(line.corners),
            pieces=tuple((text, turn(box)) for text, box in line.pieces),
        )
        for line in lines
    ]


def _count_quarter_turns(pixels: NDArray[np.uint8], recognized: list[_Line]) -> int:
    """Return the quarter turns counter-clockwise that make an image upright, from 0 to 3.

    Decided by the letters of lines on their side, and by a second recognition of the longest
    lines.
    """
    import numpy as np

    lines = [
        (
            len(line.text),
            line.corners,
            _is_sideways(line.corners) and not _HAN_OR_KANA.search(line.text),
        )
        for line in recognized
    ]
    total = sum(length for length, _, _ in lines)
    on_side = 2 * sum(length for length, _, is_on_side in lines if is_on_side) > total
    checked = sorted((line for line in lines if line[2] == on_side), key=lambda line: -line[0])
    labels = []
    for _, corners, _ in [line for line in checked if line[0] >= _MIN_LETTERS][:_MAX_LINES_CHECKED]:
        crop = np.rot90(_cut_line(pixels, corners), int(on_side))
        crop = np.ascontiguousarray(crop[:, : _CLASSIFIED_ASPECT * len(crop)])
        crop_result = _load_engine()(crop, use_det=False, use_cls=True, use_rec=False)
        labels += [label for label, score in crop_result.cls_res or () if score >= _MIN_CONFIDENCE]
    is_reversed = 2 * sum("180" in label for label in labels) > max(len(labels), 2)
    return (int(on_side) + 2 * is_reversed) % 4


def _cut_line(pixels: NDArray[np.uint8], corners: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the pixels within the corners of a line, (4, 2), without those of its neighbors."""
    import cv2
    import numpy as np

    top, right, bottom, left = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)
    width, height = max(int(top), int(bottom), 1), max(int(left), int(right), 1)
    flat = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    turned = cv2.getPerspectiveTransform(corners.astype(np.float32), flat)
    cut = cv2.warpPerspective(pixels, turned, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut, np.uint8)


def _is_sideways(corners: NDArray[np.float64]) -> bool:
    """Return whether the box of a line is much higher than wide."""
    width, height = corners.max(axis=0) - corners.min(axis=0)
    return bool(height >= _TALL_RATIO * width)


def _place_words(line: _Line, ink: TextRun) -> list[tuple[str, float, float]]:
    """Return a line's words with their left and right edges, those of their ink.

    Letters far from each other are of two words, even where the engine read no space; where its
    characters spell something else, they are taken to be of equal width.
    """
    words = line.text.split()
    letters = [float(box[:, 0].mean()) for text, box in line.pieces for _ in text.replace(" ", "")]
    is_placed = sum(map(len, words)) == len(letters)
    if not is_placed:
        joined = " ".join(words)
        step = (ink.right - ink.left) / len(joined)
        letters = [ink.left + (i + 0.5) * step for i, char in enumerate(joined) if char != " "]
    edges = [word[1:] for word in ink.words]
    holders = [min(edges, key=lambda edge: max(edge[0] - x, x - edge[1])) for x in letters]
    half = 0.5 * (ink.right - ink.left) / max(len(letters), 1)
    placed: list[tuple[str, float, float]] = []
    offset = 0
    last = (-math.inf, -math.inf)
    for word in words:
        start, is_alphabetic = True, is_placed and not _HAN_OR_KANA.search(word)
        for character in word:
            x, holder = letters[offset], holders[offset]
            is_apart = is_alphabetic and holder[0] - last[1] > _SPACE * ink.size
            if start or is_apart:
                is_shared = holder == last
                placed.append((character, x - half if is_shared else holder[0], holder[1]))
            else:
                placed[-1] = (placed[-1][0] + character, placed[-1][1], holder[1])
            if start and holder == last and len(placed) > 1:
                placed[-2] = (*placed[-2][:2], letters[offset - 1] + half)
            last, start, offset = holder, False, offset + 1
    return placed


@lru_cache(maxsize=1)
def _load_engine() -> Any:
    with MissingExtraError.guard("rapidocr", "ocr", "reading pictures of text"):
        import logging

        from rapidocr import RapidOCR
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    one_thread = {
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }
    return RapidOCR(params={"Global.log_level": "error", **one_thread})
