"""Toxicity: no insults, threats, slurs or sexual insults, by classifier or word list.

Source: Hanu and Unitary 2020, "Detoxify" (classifiers over the Jigsaw labels); Gehman et al. 2020,
arXiv:2009.11462. ``checkpoint`` takes any sequence-classification checkpoint; ``labels`` selects
the labels that count. The fallback is lexical, for English: it finds words and threats by pattern,
also with digits for letters, and no cruelty in clean words (measured in
``benchmarks/synth/bench_filters.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.provenance import digest_json
from stillroom.recipes import Reference
from stillroom.records import Record
from stillroom.synth.interfaces import FilterContext, FilterResult, ModelScoredFilter, ScoringState
from stillroom.text.safety import find_toxic_spans

__all__ = ["Toxicity"]

_NON_TOXIC = frozenset(str.split("neutral non-toxic nontoxic not_toxic safe clean ok normal none"))


class Toxicity(ModelScoredFilter):
    """Drop records that attack, threaten or degrade."""

    paper: ClassVar[str] = "arXiv:2009.11462"
    accepts_passages: ClassVar[bool] = True

    checkpoint: Reference | None = Field(
        None, description="text-classification checkpoint; without one a word list is used"
    )
    labels: tuple[str, ...] = Field(
        (), description="labels that count; by default all but the neutral ones"
    )
    max_chance: float = Field(0.5, gt=0, lt=1, description="probability from which a label counts")

    @override
    def judge(self, record: Record) -> FilterResult:
        return _by_words(record)

    @override
    def start(self, context: FilterContext) -> ScoringState:
        return _ClassifierState(self, context) if self.checkpoint else _WordListState()


class _WordListState(ScoringState):
    fingerprint = "words"

    @override
    def score(self, records: Sequence[Record]) -> list[Any]:
        return [None] * len(records)

    @override
    def decide(self, record: Record, value: Any) -> FilterResult:
        return _by_words(record)


class _ClassifierState(ScoringState):
    def __init__(self, settings: Toxicity, context: FilterContext) -> None:
        self._limit = settings.max_chance
        self._model = context.models.classifier(settings.checkpoint or "")
        labels = settings.labels or [
            label for label in self._model.labels if label.casefold() not in _NON_TOXIC
        ]
        self._labels = self._model.find_labels(labels)
        self.fingerprint = digest_json([self._model.fingerprint])

    @override
    def score(self, records: Sequence[Record]) -> list[Any]:
        texts = [
            (index, message.content)
            for index, record in enumerate(records)
            for message in record.messages
        ]
        values: list[Any] = [{} for _ in records]
        chances = self._model.classify([text for _, text in texts])
        for (index, _), scores in zip(texts, chances, strict=True):
            for label, chance in scores.items():
                values[index][label] = max(values[index].get(label, 0.0), chance)
        return values

    @override
    def decide(self, record: Record, value: Any) -> FilterResult:
        worst = max(self._labels, key=lambda label: float(value.get(label, 0.0)), default="")
        chance = float(value.get(worst, 0.0))
        if chance >= self._limit:
            return FilterResult(
                False, f"toxic: {worst}", chance, self._limit, details={"by": "classifier"}
            )
        return FilterResult(True, score=chance)


def _by_words(record: Record) -> FilterResult:
    for message in record.messages:
        spans = find_toxic_spans(message.content)
        if spans:
            details = {"by": "words", "found": spans[0].text}
            return FilterResult(
                False, f"toxic: {spans[0].kind}", float(len(spans)), 0.0, details=details
            )
    return FilterResult(True, score=0.0)
