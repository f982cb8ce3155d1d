"""OCR of page images by RapidOCR.

RapidOCR (Apache-2.0; PP-OCRv6 small, 31 MB of weights within the wheel, on ONNX Runtime) needs no
download. Rotated pages are turned upright first: RapidOCR turns each line by itself, but does not
restore their order. Limitation: rotated Chinese or Japanese pages are not detected, since their
lines look like vertical text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
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
    result = _load_engine()(pixels, use_det=True, use_cls=True, use_rec=True)
    quarters = _count_quarter_turns(pixels, result)
    if quarters:
        import numpy as np

        pixels = np.ascontiguousarray(np.rot90(pixels, quarters))
        result = _load_engine()(pixels, use_det=True, use_cls=True, use_rec=True)
    height, turn = len(pixels) * scale, 90 * quarters
    if result.boxes is None or result.txts is None:
        return OcrPage([], 0.0, height, turn)
    runs = []
    weights = total = 0.0
    for corners, text, score in zip(result.boxes, result.txts, result.scores, strict=True):
        xs, ys = [float(x) * scale for x, _ in corners], [float(y) * scale for _, y in corners]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
        words = _place_words(" ".join(str(text).split()), left, right)
        if not words:
            continue
        height = _HEIGHT * (bottom - top)
        runs.append(TextRun(words, left, top, right, bottom, height, height))
        weights += len(text)
        total += len(text) * float(score)
    return OcrPage(runs, total / weights if weights else 0.0, height, turn)


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
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        crop = pixels[max(int(top), 0) : int(bottom) + 1, max(int(left), 0) : int(right) + 1]
        crop = np.ascontiguousarray(np.rot90(crop, int(on_side)))
        crop_result = _load_engine()(crop, use_det=False, use_cls=True, use_rec=False)
        labels += [label for label, score in crop_result.cls_res or () if score >= _MIN_CONFIDENCE]
    is_reversed = 2 * sum("180" in label for label in labels) > max(len(labels), 2)
    return (int(on_side) + 2 * is_reversed) % 4


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
