"""Pictures of text to runs of words, by an OCR library that carries its models in its package.

RapidOCR (Apache-2.0; PP-OCRv6 small, 31 MB of weights within the wheel, on ONNX Runtime): nothing
is downloaded. Knows pictures and places of words; nothing of files or of what the words mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, MissingExtraError
from stillroom.text.glyphs import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Recognized", "has_ocr", "read_picture", "require_language"]

_LANGUAGES = frozenset(
    "af az bs ca cs cy da de en es et eu fi fr ga gl hr hu id is it ja ku la lb lt lv mi ms mt"  # noqa: SIM905
    " nl no oc pl pt qu rm ro sk sl sq sr sv sw tl tr uz vi zh".split()
)
_HEIGHT = 0.8  # the height of characters as a share of the box that is found around a line


@dataclass(frozen=True, slots=True)
class Recognized:
    """The runs of a picture, in its pixels times a scale, and how sure the reader is, 0 to 1."""

    runs: list[Run]
    confidence: float


def has_ocr() -> bool:
    """Say whether the packages of the extra ``ocr`` are installed."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("rapidocr", "onnxruntime"))


def require_language(language: str, where: str) -> None:
    """Refuse a language whose script the packaged model has not learned.

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


def read_picture(pixels: NDArray[np.uint8], *, scale: float = 1.0) -> Recognized:
    """Return what is written in a picture.

    Args:
        pixels: Blue, green, red of each pixel, (Y, X, 3), uint8.
        scale: The runs' places are pixels times this.

    Raises:
        MissingExtraError: If the extra ``ocr`` is not installed.
    """
    found = _engine()(pixels)
    if found.boxes is None or found.txts is None:
        return Recognized([], 0.0)
    runs = []
    weights = total = 0.0
    for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True):
        xs, ys = [float(x) * scale for x, _ in corners], [float(y) * scale for _, y in corners]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
        words = _place(" ".join(str(text).split()), left, right)
        if not words:
            continue
        height = _HEIGHT * (bottom - top)
        runs.append(Run(words, left, top, right, bottom, height, height))
        weights += len(text)
        total += len(text) * float(score)
    return Recognized(runs, total / weights if weights else 0.0)


def _place(text: str, left: float, right: float) -> list[tuple[str, float, float]]:
    """Return words with where each begins and ends, as if all characters had one width."""
    step = (right - left) / max(len(text), 1)
    words, at = [], 0
    for word in text.split():
        words.append((word, left + at * step, left + (at + len(word)) * step))
        at += len(word) + 1
    return words


@lru_cache(maxsize=1)
def _engine() -> Any:
    try:
        import logging

        from rapidocr import RapidOCR
    except ImportError as error:
        raise MissingExtraError.of("rapidocr", "ocr", "reading pictures of text") from error
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    one_thread = {
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }
    return RapidOCR(params={"Global.log_level": "error", **one_thread})
