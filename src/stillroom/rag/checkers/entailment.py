"""Check by natural language inference whether a passage entails the sentence.

Source: Honovich et al. 2022, "TRUE: Re-evaluating Factual Consistency Evaluation",
arXiv:2204.04991. Differs from the paper: any sequence-classification checkpoint whose labels name
entailment is taken, passages are read in windows of sentences that fit the model, and the best
window counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.generation.grounding import SourceTexts
from stillroom.rag.interfaces import GroundednessChecker
from stillroom.rag.model_calls import open_entailment
from stillroom.text.language import split_windows

if TYPE_CHECKING:
    from stillroom.models.encoders.sequence_classifiers import NLIModel
    from stillroom.rag.index.searcher import Index

__all__ = ["Entailment"]


class Entailment(GroundednessChecker):
    """The probability of entailment under a checkpoint trained for it."""

    paper: ClassVar[str] = "arXiv:2204.04991"

    checkpoint: str = Field(min_length=1, description="folder or hub:NAME of the inference model")
    window: int = Field(4, ge=1, le=100, description="how many sentences of a passage are read")
    device: str = Field("cpu", description="cpu, cuda, cuda:1, mps")
    threshold: float = Field(
        0.5, gt=0, lt=1, description="probability from which a sentence is supported"
    )

    @override
    def hold(self, passages: Sequence[str], index: Index) -> SourceTexts:
        model = open_entailment(self.checkpoint, device=self.device)
        return _EntailmentTexts(passages, index, model, self.window, self.threshold)


class _EntailmentTexts(SourceTexts):
    """Passages in overlapping windows, read by the model with each sentence."""

    def __init__(
        self,
        passages: Sequence[str],
        index: Index,
        model: NLIModel,
        window: int,
        threshold: float,
    ) -> None:
        super().__init__(passages, index.analyzer, index.lexicon)
        self.threshold = threshold
        self._model = model
        self._premises = [split_windows(text, window) for text in passages]
        self._known: dict[tuple[str, int], float] = {}

    @override
    def measure(self, sentence: str, number: int) -> float:
        mark = sentence, number
        if mark not in self._known:
            parts = self._premises[number - 1]
            chances = self._model.entail(parts, [sentence] * len(parts))
            self._known[mark] = max(chances, default=0.0)
        return self._known[mark]
