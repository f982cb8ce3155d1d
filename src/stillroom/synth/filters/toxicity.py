"""Toxicity: no insults, threats, slurs or sexual insults, by classifier or word list.

Source: Hanu and Unitary 2020, "Detoxify" (classifiers over the Jigsaw labels); Gehman et al. 2020,
arXiv:2009.11462. ``checkpoint`` takes any sequence-classification checkpoint; ``labels`` say which
of its labels count. Without one the fall-back is lexical, in English: it finds words and threats by
their form, also written with digits for letters, and nothing that is cruel in clean words (measured
in ``benchmarks/synth/bench_filters.py``).
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
    """Drops records that attack, threaten or degrade."""

    paper: ClassVar[str] = "arXiv:2009.11462"
    judges_passages: ClassVar[bool] = True

    checkpoint: Reference | None = Field(
        None, description="text-classification checkpoint; none looks for words alone"
    )
    labels: tuple[str, ...] = Field(
        (), description="labels that count; by default all but those that say there is nothing"
    )
    max_chance: float = Field(0.5, gt=0, lt=1, description="probability from which a label counts")

    @override
    def judge(self, record: Record) -> FilterResult:
        return _by_words(record)

    @override
    def begin(self, context: FilterContext) -> ScoringState:
        return _ClassifierState(self, context) if self.checkpoint else _WordListState()


class _WordListState(ScoringState):
    fingerprint = "words"

    @override
    def measure(self, records: Sequence[Record]) -> list[Any]:
        return [None] * len(records)

    @override
    def weigh(self, record: Record, value: Any) -> FilterResult:
        return _by_words(record)


class _ClassifierState(ScoringState):
    def __init__(self, chosen: Toxicity, context: FilterContext) -> None:
        self._limit = chosen.max_chance
        self._model = context.models.classifier(chosen.checkpoint or "")
        wanted = chosen.labels or [
            label for label in self._model.labels if label.casefold() not in _NON_TOXIC
        ]
        self._labels = self._model.find_labels(wanted)
        self.fingerprint = digest_json([self._model.fingerprint])

    @override
    def measure(self, records: Sequence[Record]) -> list[Any]:
        texts = [(at, one.content) for at, record in enumerate(records) for one in record.messages]
        found: list[Any] = [{} for _ in records]
        chances = self._model.classify([text for _, text in texts])
        for (at, _), given in zip(texts, chances, strict=True):
            for label, chance in given.items():
                found[at][label] = max(found[at].get(label, 0.0), chance)
        return found

    @override
    def weigh(self, record: Record, value: Any) -> FilterResult:
        worst = max(self._labels, key=lambda label: float(value.get(label, 0.0)), default="")
        chance = float(value.get(worst, 0.0))
        if chance >= self._limit:
            return FilterResult(
                False, f"toxic: {worst}", chance, self._limit, told={"by": "classifier"}
            )
        return FilterResult(True, score=chance)


def _by_words(record: Record) -> FilterResult:
    for message in record.messages:
        found = find_toxic_spans(message.content)
        if found:
            told = {"by": "words", "found": found[0].text}
            return FilterResult(False, f"toxic: {found[0].kind}", float(len(found)), 0.0, told=told)
    return FilterResult(True, score=0.0)
