"""Check by a small encoder that was trained on planted edits; numbers must match exactly.

Source: Tang et al. 2024, "MiniCheck", arXiv:2404.10774; Kryscinski et al. 2020, "FactCC",
arXiv:1910.12840. Differs from the papers: low-rank updates of a sentence embedder
(``stillroom.rag.claim_checking.checker``). A sentence that the passage has word for word is
supported, and one with a number that it lacks is not; fragments of fewer than four words and
passages in another language than English are checked by shared words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.analysis.stop_words import STOP_WORDS
from stillroom.rag.claim_checking.checker import BUILTIN_CHECKER, ClaimChecker, open_checker
from stillroom.rag.generation.grounding import (
    SUPPORT_THRESHOLD,
    SourceTexts,
    extract_all_numbers,
    extract_numbers,
)
from stillroom.rag.interfaces import GroundednessChecker
from stillroom.text.unicode import normalize_text

if TYPE_CHECKING:
    from stillroom.rag.claim_checking.encoding import EncodedSource
    from stillroom.rag.index.searcher import Index

__all__ = ["Trained"]

_MIN_CLAIM_WORDS, _MIN_VERBATIM_WORDS = 4, 5
_WORD = re.compile(r"\w+")
_BULLET = re.compile(r"\A\s*(?:\d{1,2}[.)]|[-*•])(?:\s+|$)")


class Trained(GroundednessChecker):
    """Probability of support under a small encoder trained on planted edits."""

    paper: ClassVar[str] = "arXiv:2404.10774"

    checkpoint: str = Field(
        BUILTIN_CHECKER,
        min_length=1,
        description="checker: builtin:checker, or the folder of a job of kind rag.checker",
    )

    @override
    def hold(self, passages: Sequence[str], index: Index) -> SourceTexts:
        return _TrainedTexts(passages, index, open_checker(self.checkpoint))


class _TrainedTexts(SourceTexts):
    """Passages as the encoder reads them; each is encoded once."""

    def __init__(self, passages: Sequence[str], index: Index, checker: ClaimChecker) -> None:
        super().__init__(passages, index.analyzer, index.lexicon)
        self.threshold = checker.threshold
        self._checker = checker
        self._plain = [f" {normalize_text(text)} " for text in passages]
        self._titles = [""] * len(passages)
        self._is_english = list(map(_is_english, passages))
        self._sources: dict[int, EncodedSource] = {}
        self._known: dict[tuple[str, int], float] = {}

    @override
    def set_headings(self, headings: Sequence[str]) -> None:
        super().set_headings(headings)
        self._titles = [" > ".join(heading.split("\n")) for heading in headings]
        self._sources.clear()
        self._known.clear()

    @override
    def measure(self, sentence: str, number: int) -> float:
        """Return the probability that a passage supports a sentence."""
        claim = _BULLET.sub("", sentence)
        words = normalize_text(claim)
        size = len(words.split())
        if size < _MIN_CLAIM_WORDS or not self._is_english[number - 1]:
            score = super().measure(sentence, number)
            return min(1.0, score * self.threshold / SUPPORT_THRESHOLD)
        if size >= _MIN_VERBATIM_WORDS and f" {words} " in self._plain[number - 1]:
            return 1.0
        text = self._texts[number - 1]
        if not extract_numbers(claim) <= extract_all_numbers(f"{self._titles[number - 1]}\n{text}"):
            return 0.0
        key = claim, number
        if key not in self._known:
            if number not in self._sources:
                source = self._checker.encode_source(text, self._titles[number - 1])
                self._sources[number] = source
            self._known[key] = self._checker.measure(claim, self._sources[number])
        return self._known[key]


def _is_english(text: str) -> bool:
    """Return whether a text has more stop words of English than of each other language."""
    words = [word.casefold() for word in _WORD.findall(text)]
    counts = {name: sum(word in stop for word in words) for name, stop in STOP_WORDS.items()}
    english = counts.pop("english")
    return english > 0 and english >= max(counts.values())
