"""Score by natural language inference (NLI) whether a passage entails the sentence.

Source: Honovich et al. 2022, "TRUE: Re-evaluating Factual Consistency Evaluation",
arXiv:2204.04991. Differs from the paper: any sequence-classification checkpoint with an entailment
label is accepted, passages are split into windows of sentences that fit the model, and the maximum
over windows is the score, which ``rag.generation.cited_sentences`` compares with ``threshold``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.rag.groundedness.score import SourceTexts
from stillroom.rag.interfaces import GroundednessChecker
from stillroom.rag.model_calls import open_entailment, read_fingerprint
from stillroom.text.language import split_windows

if TYPE_CHECKING:
    from stillroom.models.encoders.sequence_classifiers import NLIModel
    from stillroom.rag.index.searcher import Index

__all__ = ["Entailment"]


class Entailment(GroundednessChecker):
    """Probability of entailment under a natural language inference model."""

    paper: ClassVar[str] = "arXiv:2204.04991"

    checkpoint: str = Field(min_length=1, description="folder or hub:NAME of the inference model")
    window: int = Field(4, ge=1, le=100, description="number of sentences in a window")
    device: str = Field("cpu", description="cpu, cuda, cuda:1, mps")
    threshold: float = Field(
        0.5, gt=0, lt=1, description="minimum probability of a supported sentence"
    )

    @property
    @override
    def moment(self) -> str:
        return read_fingerprint(self.checkpoint)

    @override
    def hold(self, passages: Sequence[str], index: Index) -> SourceTexts:
        model = open_entailment(self.checkpoint, device=self.device)
        return _EntailmentTexts(passages, index, model, self.window, self.threshold)


class _EntailmentTexts(SourceTexts):
    """Passages in overlapping windows, scored by the model with each sentence."""

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
        key = sentence, number
        if key not in self._known:
            parts = self._premises[number - 1]
            chances = self._model.entail(parts, [sentence] * len(parts))
            self._known[key] = max(chances, default=0.0)
        return self._known[key]
