"""Score by lexical overlap, with exact numbers, names and negations.

Source: no paper; the score is defined in ``stillroom.rag.groundedness.score``. Needs no model.
Synonyms, arithmetic and inference are not recognized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.rag.groundedness.score import SourceTexts
from stillroom.rag.interfaces import GroundednessChecker

if TYPE_CHECKING:
    from stillroom.rag.index.searcher import Index

__all__ = ["Overlap"]


class Overlap(GroundednessChecker):
    """Idf-weighted coverage of a sentence's words by a window of a passage."""

    paper: ClassVar[str] = ""

    @override
    def hold(self, passages: Sequence[str], index: Index) -> SourceTexts:
        return SourceTexts(passages, index.analyzer, index.lexicon)
