"""Extract noun phrases by rules and relate those that co-occur; needs no model.

Source: FastGraphRAG, the noun-phrase graph of Edge et al. 2024, arXiv:2404.16130 (its code: phrases
as nodes, co-occurrence as edges, weights by pointwise mutual information, rare nodes pruned).
Differs: phrases are found by rules over words instead of a tagger, so that no model is downloaded;
two phrases are related within a few sentences instead of anywhere in a passage; the weight of an
edge is the number of passages with both, times their positive pointwise mutual information.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.analysis.phrases import find_acronyms, find_phrases
from stillroom.rag.interfaces import EntityExtractor, Mention, PassageExtraction

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.records import Passage

__all__ = ["NounPhrases"]


class NounPhrases(EntityExtractor):
    """Phrases and co-occurrence, weighted by mutual information."""

    paper: ClassVar[str] = "arXiv:2404.16130"

    min_count: int = Field(
        2, ge=1, le=1000, description="minimum number of passages that mention an entity"
    )

    window: int = Field(
        2, ge=1, le=50, description="number of sentences within which two phrases are related"
    )
    prune: float = Field(
        0.4, ge=0, lt=1, description="share of the relations that is dropped, the lightest"
    )

    @override
    def extract(
        self,
        passages: Sequence[Passage],
        model: TextModel | None = None,
        *,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[PassageExtraction]:
        extractions = []
        for passage in passages:
            if is_cancelled is not None and is_cancelled():
                break
            text = passage.text
            mentions = tuple(
                Mention(
                    " ".join(text[phrase.start : phrase.end].split()),
                    phrase.start,
                    phrase.end,
                    phrase.sentence,
                )
                for phrase in find_phrases(text, passage.language)
            )
            extractions.append(PassageExtraction(mentions, (), tuple(find_acronyms(text))))
        return extractions

    @override
    def weigh(self, together: float, source: int, target: int, passages: int) -> float:
        return together * max(math.log(together * passages / (source * target)), 0.0)

    @property
    @override
    def reach(self) -> int:
        return self.window

    @property
    @override
    def pruned(self) -> float:
        return self.prune

    @property
    @override
    def assembly_settings(self) -> tuple[str, ...]:
        return ("min_count", "window", "prune")
