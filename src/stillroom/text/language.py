"""Which language a text is in, by character n-grams; offline, 97 languages.

Knows nothing of programming languages: give it prose. py3langid was chosen over lingua (whose wheel
is 96 MB to its 5) and fastText (whose model must be downloaded).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Protocol, cast

__all__ = ["detect_language"]

_SAMPLE = 2000
_LETTERS = re.compile(r"[^\W\d_]")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_MIN_LETTERS = 20
_MIN_CONFIDENCE = 0.95
_NO_LANGUAGE = "zxx"


class _Identifier(Protocol):
    def classify(self, text: str) -> tuple[str, float]: ...


def detect_language(text: str) -> str:
    """Return the ISO 639-1 code of a text's language, or an empty string when unsure.

    Unsure means: fewer than 20 letters (7 in Chinese, Japanese and Korean), or a confidence below
    0.95. Samples from the start and the middle of the text are looked at.
    """
    sample = text[:_SAMPLE]
    if len(text) > 4 * _SAMPLE:
        middle = len(text) // 2
        sample += " " + text[middle : middle + _SAMPLE]
    letters = len(_LETTERS.findall(sample)) + 2 * len(_WIDE.findall(sample))
    if letters < _MIN_LETTERS:
        return ""
    code, confidence = _identifier().classify(sample.encode("utf-8", "replace").decode("utf-8"))
    return code if confidence >= _MIN_CONFIDENCE and len(code) == 2 else ""


@lru_cache(maxsize=1)
def _identifier() -> _Identifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    codes = [code for code in identifier.labels if len(code) == 2 or code == _NO_LANGUAGE]
    identifier.set_languages(codes)
    return cast("_Identifier", identifier)
