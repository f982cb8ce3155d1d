"""Score by a small trained claim checker (``rag.claim_checking``).

Source: Tang et al. 2024, "MiniCheck", arXiv:2404.10774. Differs: see
``stillroom.rag.claim_checking.checker``. A sentence that the passage has word for word is
supported, unless the passage negates it; one with a number or name that it lacks, or that repeats
it but for an edit (``rag.groundedness.substitutions``, ``roles``), is not. Fragments of fewer than
four words and passages in another language than English are checked by word overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.errors import CheckpointError
from stillroom.rag.claim_checking.checker import BUILTIN_CHECKER, ClaimChecker, open_checker
from stillroom.rag.groundedness.claims import BULLET, extract_all_numbers, extract_numbers
from stillroom.rag.groundedness.roles import is_english
from stillroom.rag.groundedness.score import SUPPORT_THRESHOLD, SourceTexts
from stillroom.rag.interfaces import GroundednessChecker
from stillroom.rag.observability import add_warning
from stillroom.text.unicode import normalize_text

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index

__all__ = ["Trained"]

_MIN_CLAIM_WORDS = 4
_COPIED_SHARE = 0.9  # of the weight of a claim's words, in three sentences of the passage


class Trained(GroundednessChecker):
    """Probability of support under a small model trained on judged claims."""

    paper: ClassVar[str] = "arXiv:2404.10774"

    checkpoint: str = Field(
        BUILTIN_CHECKER,
        min_length=1,
        description="checker: builtin:checker, or the folder of a job of kind rag.checker",
    )

    @property
    @override
    def moment(self) -> str:
        try:
            return open_checker(self.checkpoint).fingerprint
        except CheckpointError:
            return ""

    @override
    def hold(self, passages: Sequence[str], index: Index) -> SourceTexts:
        try:
            checker = open_checker(self.checkpoint)
        except CheckpointError as error:
            if self.checkpoint != BUILTIN_CHECKER:
                raise
            why = f"{BUILTIN_CHECKER} cannot be opened ({error.problems[0].code})"
            add_warning(f"support is checked by word overlap only, since {why}")
            return SourceTexts(passages, index.analyzer, index.lexicon)
        return _TrainedTexts(passages, index, checker)


class _TrainedTexts(SourceTexts):
    """Passages as the checker reads them with sentences; each pair is read once."""

    def __init__(self, passages: Sequence[str], index: Index, checker: ClaimChecker) -> None:
        super().__init__(passages, index.analyzer, index.lexicon)
        self.threshold = checker.threshold
        self._checker = checker
        self._plain = [f" {normalize_text(text)} " for text in passages]
        self._headings = [""] * len(passages)
        self._is_english = list(map(is_english, passages))
        self._read = lru_cache(maxsize=4096)(self._read_claim)

    @override
    def set_headings(self, headings: Sequence[str]) -> None:
        super().set_headings(headings)
        self._headings = list(headings)
        self._read.cache_clear()

    @override
    def measure(self, sentence: str, number: int) -> float:
        """Return the probability that a passage supports a sentence."""
        claim = BULLET.sub("", sentence)
        if (
            len(normalize_text(claim).split()) < _MIN_CLAIM_WORDS
            or not self._is_english[number - 1]
        ):
            score = super().measure(sentence, number)
            return min(1.0, score * self.threshold / SUPPORT_THRESHOLD)
        if self._is_verbatim(claim, number):
            return float(self._agrees(claim, self._get_idf_by_term(claim), number))
        text, heading = self._passages[number - 1].text, self._headings[number - 1]
        known = extract_all_numbers(f"{heading}\n{text}")
        if not extract_numbers(claim) <= known or not self._covers_names(claim, number):
            return 0.0
        if self._is_edited_copy(claim, number):
            return 0.0
        return self._read(claim, number)

    def _is_edited_copy(self, claim: str, number: int) -> bool:
        """Return whether a claim repeats the passage but for a word, name, role or negation."""
        weights = self._get_idf_by_term(claim)
        return (
            bool(sum(weights.values()))
            and any(
                self._compute_coverage(weights, window, number) >= _COPIED_SHARE
                for window in self._passages[number - 1].windows
            )
            and (
                not self._agrees(claim, weights, number)
                or self._has_substitution(claim, number, self._list_neighbors())
            )
        )

    def _is_verbatim(self, claim: str, number: int) -> bool:
        return f" {normalize_text(claim)} " in self._plain[number - 1]

    def _read_claim(self, claim: str, number: int) -> float:
        text, heading = self._passages[number - 1].text, self._headings[number - 1]
        return self._checker.measure(claim, heading, text)
