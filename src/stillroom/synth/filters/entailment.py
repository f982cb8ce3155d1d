"""Entailment: every sentence of the answer is entailed by the passage, by an NLI model.

Source: Honovich et al. 2022, arXiv:2204.04991 (TRUE), and Laban et al. 2022, arXiv:2111.09525
(SummaC: each sentence against windows of the source; the best window counts). The filter
``grounded`` compares words only.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.provenance import digest_json
from stillroom.recipes import Reference
from stillroom.records import Record
from stillroom.synth.interfaces import FilterContext, FilterResult, ModelScoredFilter, ScoringState
from stillroom.synth.prompting.conversation import (
    get_evidence_passage,
    get_evidence_quote,
    get_last_answer,
)
from stillroom.text.language import split_sentences, split_windows

__all__ = ["Entailment"]


class Entailment(ModelScoredFilter):
    """Drop answers with a sentence that their passage does not entail."""

    paper: ClassVar[str] = "arXiv:2204.04991"

    checkpoint: Reference = Field(
        description="sequence-classification checkpoint with a label 'entailment'"
    )
    min_chance: float = Field(
        0.5, gt=0, lt=1, description="probability from which a sentence counts as entailed"
    )
    window: int = Field(4, ge=1, le=100, description="sentences of the passage per window")

    @override
    def start(self, context: FilterContext) -> ScoringState:
        return _EntailmentState(self, context)


class _EntailmentState(ScoringState):
    def __init__(self, settings: Entailment, context: FilterContext) -> None:
        self._settings, self._context = settings, context
        self._model = context.models.entailment(settings.checkpoint)
        self.fingerprint = digest_json([self._model.fingerprint, settings.window])

    @override
    def measure(self, record: Record) -> Any:
        passage = get_evidence_passage(record, self._context)
        source = passage.text if passage is not None else get_evidence_quote(record)
        answer = get_last_answer(record)
        if not source.strip():
            return {"failed": "it names no passage"}
        parts = split_windows(source, self._settings.window)
        worst, sentence = 1.0, ""
        for start, end in split_sentences(answer):
            claim = answer[start:end]
            chance = max(self._model.entail(parts, [claim] * len(parts)), default=0.0)
            if chance < worst or not sentence:
                worst, sentence = chance, claim
        return {"chance": worst, "sentence": sentence}

    @override
    def decide(self, record: Record, value: Any) -> FilterResult:
        chance = value["chance"]
        if chance < self._settings.min_chance:
            details = {"sentence": value["sentence"]}
            limit = self._settings.min_chance
            return FilterResult(
                False, "does not follow from the passage", chance, limit, details=details
            )
        return FilterResult(True, score=chance)
