"""Score by a claim checker (``rag.claim_checking``) that was trained on planted edits.

Source: Kryscinski et al. 2020, "FactCC", arXiv:1910.12840; Tang et al. 2024, "MiniCheck",
arXiv:2404.10774. Differs: a logistic model of what is left over when sentence and passage are
aligned (``stillroom.rag.claim_checking``) reads in place of a network. A sentence that the passage
has word for word is supported, and one with a number or name that it lacks is not; fragments of
fewer than four words and passages in another language than English are checked by shared words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.errors import CheckpointError
from stillroom.rag.claim_checking.alignment import AlignedPassage, describe_claim
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
_IDENTITY = re.compile(r"\AThe ([^,;]+?) (is|was|are|were) ((?!not\b)[^,;]+?)\.?\Z")


class Trained(GroundednessChecker):
    """Probability of support under a small model trained on planted edits."""

    paper: ClassVar[str] = "arXiv:1910.12840"

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
            add_warning(f"support is checked by shared words alone, since {why}")
            return SourceTexts(passages, index.analyzer, index.lexicon)
        return _TrainedTexts(passages, index, checker)


class _TrainedTexts(SourceTexts):
    """Passages as the checker aligns them with sentences; each is read once."""

    def __init__(self, passages: Sequence[str], index: Index, checker: ClaimChecker) -> None:
        super().__init__(passages, index.analyzer, index.lexicon)
        self.threshold = checker.threshold
        self._checker = checker
        self._weigh = lru_cache(maxsize=4096)(index.lexicon.idf)
        self._plain = [f" {normalize_text(text)} " for text in passages]
        self._headings = [""] * len(passages)
        self._is_english = list(map(is_english, passages))
        self._aligned: dict[int, AlignedPassage] = {}

    @override
    def set_headings(self, headings: Sequence[str]) -> None:
        super().set_headings(headings)
        self._headings = list(headings)
        self._aligned.clear()

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
            return 1.0
        text, heading = self._passages[number - 1].text, self._headings[number - 1]
        known = extract_all_numbers(f"{heading}\n{text}")
        if not extract_numbers(claim) <= known or not self._covers_names(claim, number):
            return 0.0
        if self._reverses_roles(claim, number):
            return 0.0
        turned = _turn_identity(claim)
        if turned and self._is_verbatim(turned, number):
            return 1.0
        return max(self._align(said, number) for said in (claim, turned) if said)

    def _is_verbatim(self, claim: str, number: int) -> bool:
        return f" {normalize_text(claim)} " in self._plain[number - 1]

    def _align(self, claim: str, number: int) -> float:
        if number not in self._aligned:
            self._aligned[number] = AlignedPassage.of(
                self._passages[number - 1].text, self._headings[number - 1], self._stem
            )
        passage = self._aligned[number]
        return self._checker.measure(
            describe_claim(claim, passage, stem=self._stem, weigh=self._weigh)
        )


def _turn_identity(claim: str) -> str:
    """Return ``X is the Y.`` for ``The Y is X.``, which say the same; empty for other claims."""
    match = _IDENTITY.match(claim)
    return f"{match[3]} {match[2]} the {match[1]}." if match else ""
