"""Checks by shared words: numbers, names and negations exactly, and each word in its place.

Source: no paper; see ``stillroom.rag.support``, which says what the score is. Needs no model. Does
not know: synonyms, arithmetic, what follows from what.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.rag.method import Checker
from stillroom.rag.support import Evidence

if TYPE_CHECKING:
    from stillroom.rag.index import Index

__all__ = ["Overlap"]


class Overlap(Checker):
    """Idf-weighted coverage of a sentence's words by a few sentences of a passage."""

    paper: ClassVar[str] = ""

    @override
    def hold(self, passages: Sequence[str], index: Index) -> Evidence:
        return Evidence(passages, index.analyzer, index.lexicon)
