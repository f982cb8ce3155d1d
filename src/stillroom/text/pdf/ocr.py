"""OCR of page images by RapidOCR.

RapidOCR (Apache-2.0; PP-OCRv6 small, 31 MB of weights within the wheel, on ONNX Runtime) needs no
download. Rotated pages are turned upright first: RapidOCR turns each line by itself, but does not
restore their order. Limitation: rotated Chinese or Japanese pages are not detected, since their
lines look like vertical text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, MissingExtraError
from stillroom.text.pdf.page import TextRun

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
_HAN_OR_KANA = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
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

    Args:
        pixels: BGR pixels, (Y, X, 3), uint8.
        scale: Factor from pixels to the runs' coordinates.

    Raises:
        MissingExtraError: If the extra ``ocr`` is not installed.
    """
    import numpy as np

    result = _load_engine()(pixels, use_det=True, use_cls=True, use_rec=True)
    quarters = _count_quarter_turns(pixels, result)
    if quarters:
        pixels = np.ascontiguousarray(np.rot90(pixels, quarters))
        result = _load_engine()(pixels, use_det=True, use_cls=True, use_rec=True)
    page = OcrPage([], 0.0, len(pixels) * scale, 90 * quarters)
    if result.boxes is None or result.txts is None:
        return page
    boxes = _level_lines(np.asarray(result.boxes, dtype=np.float64), pixels.shape) * scale
    weights = total = 0.0
    for corners, text, score in zip(boxes, result.txts, result.scores, strict=True):
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        words = _place_words(" ".join(str(text).split()), float(left), float(right))
        if not words:
            continue
        height = _HEIGHT * float(bottom - top)
        page.runs.append(
            TextRun(words, float(left), float(top), float(right), float(bottom), height, height)
        )
        weights += len(text)
        total += len(text) * float(score)
    return replace(page, confidence=total / weights if weights else 0.0)


def _level_lines(boxes: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the corners of lines, (N, 4, 2), turned about the image's center to be level.

    A scan that lies askew has lines whose upright boxes overlap; their order and height are read
    from the leveled ones. The angle is the median over lines, weighted by their length.
    """
    import numpy as np

    along = (boxes[:, 1] - boxes[:, 0]) + (boxes[:, 2] - boxes[:, 3])
    lengths = np.hypot(along[:, 0], along[:, 1])
    is_line = along[:, 0] >= _MIN_ASPECT * np.abs(boxes[:, 3] - boxes[:, 0]).max(axis=1)
    if not is_line.any():
        return boxes
    angles = np.arctan2(along[is_line, 1], along[is_line, 0])
    order = np.argsort(angles)
    reached = np.cumsum(lengths[is_line][order])
    angle = float(angles[order][np.searchsorted(reached, reached[-1] / 2)])
    cosine, sine = math.cos(angle), math.sin(angle)
    center = np.array([shape[1] / 2, shape[0] / 2])
    leveled: NDArray[np.float64] = (boxes - center) @ np.array([[cosine, -sine], [sine, cosine]])
    leveled += center
    return leveled


def _count_quarter_turns(pixels: NDArray[np.uint8], result: Any) -> int:
    """Return the quarter turns counter-clockwise that make an image upright, from 0 to 3.

    Decided by the letters of lines on their side, and by a second recognition of the longest
    lines.
    """
    import numpy as np

    if result.boxes is None or result.txts is None:
        return 0
    lines = [
        (len(text), corners, _is_sideways(corners) and not _HAN_OR_KANA.search(text))
        for corners, text in zip(result.boxes, result.txts, strict=True)
    ]
    total = sum(length for length, _, _ in lines)
    on_side = 2 * sum(length for length, _, is_on_side in lines if is_on_side) > total
    checked = sorted((line for line in lines if line[2] == on_side), key=lambda line: -line[0])
    labels = []
    for _, corners, _ in [line for line in checked if line[0] >= _MIN_LETTERS][:_MAX_LINES_CHECKED]:
        crop = np.ascontiguousarray(np.rot90(_cut_line(pixels, corners), int(on_side)))
        crop_result = _load_engine()(crop, use_det=False, use_cls=True, use_rec=False)
        labels += [label for label, score in crop_result.cls_res or () if score >= _MIN_CONFIDENCE]
    is_reversed = 2 * sum("180" in label for label in labels) > max(len(labels), 2)
    return (int(on_side) + 2 * is_reversed) % 4


def _cut_line(pixels: NDArray[np.uint8], corners: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the pixels within the corners of a line, (4, 2), without those of its neighbors."""
    import cv2
    import numpy as np

    top, right, bottom, left = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)
    width, height = max(int(top), int(bottom), 1), max(int(left), int(right), 1)
    flat = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    turned = cv2.getPerspectiveTransform(corners.astype(np.float32), flat)
    cut = cv2.warpPerspective(pixels, turned, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut, np.uint8)


def _is_sideways(corners: NDArray[np.float32]) -> bool:
    """Return whether the box of a line is much higher than wide."""
    width, height = corners.max(axis=0) - corners.min(axis=0)
    return bool(height >= _TALL_RATIO * width)


def _place_words(text: str, left: float, right: float) -> list[tuple[str, float, float]]:
    """Return words with estimated left and right edges, for characters of equal width."""
    step = (right - left) / max(len(text), 1)
    words, offset = [], 0
    for word in text.split():
        words.append((word, left + offset * step, left + (offset + len(word)) * step))
        offset += len(word) + 1
    return words


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
