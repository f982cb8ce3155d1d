"""Reworded: no rephrased benchmark item, by embeddings and lexical anchors.

Source: Yang et al. 2023, arXiv:2311.04850 (rephrased samples). Differs: names, numbers and answers
complement the cosine (``text.dedup.paraphrases``), and no judge is used; a job of kind
``synth.decontaminate`` can use one. Test items are the run's own held-out questions and those of
the files in ``against``. Copies are found by the filter ``decontaminate``. A record that could not
be embedded is dropped as unmeasured, never reported as clean. Where records and items are about the
same documents, questions about one name look alike: a higher threshold then costs fewer records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.provenance import digest_json
from stillroom.recipes import DISTINCT, Reference
from stillroom.records import Record
from stillroom.synth.dedup.benchmark_items import BenchmarkAnswers, read_benchmark_items
from stillroom.synth.dedup.contamination import MatchThresholds, find_paraphrases
from stillroom.synth.dedup.word_search import WordFinder
from stillroom.synth.interfaces import (
    EMBEDDER,
    FilterContext,
    FilterResult,
    ModelScoredFilter,
    ScoringState,
)
from stillroom.synth.prompting.conversation import get_final_answer, get_question
from stillroom.text.dedup.decontamination import count_document_frequencies
from stillroom.text.dedup.paraphrases import ParaphraseIndex, ParaphraseScore

__all__ = ["Reworded"]


class Reworded(ModelScoredFilter):
    """Drop training records that ask what a test item asks, in other words."""

    paper: ClassVar[str] = "arXiv:2311.04850"
    accepts_passages: ClassVar[bool] = True

    embedder: Reference = EMBEDDER
    against: Annotated[tuple[Reference, ...], DISTINCT] = Field(
        (), description="files or artifacts of records whose questions must not occur"
    )
    threshold: float = Field(
        MatchThresholds().reworded,
        gt=0,
        description="score from which a text counts as a rewording",
    )

    @override
    def start(self, context: FilterContext) -> ScoringState:
        return _RewordedState(self, context)


class _RewordedState(ScoringState):
    def __init__(self, settings: Reworded, context: FilterContext) -> None:
        self._settings = settings
        items = {item.text: item.answer for item in read_benchmark_items(settings.against)}
        for record in context.held_out:
            if any(message.role == "user" for message in record.messages):  # no bare passage
                items.setdefault(get_question(record), get_final_answer(record))
        items.pop("", None)
        self._items = list(items)
        self._answers = BenchmarkAnswers(list(items.values()))
        self._embedder = context.models.embedder(settings.embedder)
        counted = [passage.text for passage in context.passages.values()] or self._items
        frequency, count = count_document_frequencies(counted)
        self._index: ParaphraseIndex | None = None
        if self._items:
            words = WordFinder(
                self._items,
                self._answers,
                frequency=frequency,
                texts=count,
                near=MatchThresholds().near,
            )
            vectors = self._embedder.embed(words.searched, kind="passage")
            self._index = ParaphraseIndex(words.searched, vectors, frequency=frequency, texts=count)
        parts = [
            self._embedder.fingerprint,
            sorted(items.items()),
            sorted(frequency.items()),
            count,
        ]
        self.fingerprint = digest_json(parts)

    @override
    def score(self, records: Sequence[Record]) -> list[Any]:
        best: list[ParaphraseScore | None] = [None] * len(records)
        if self._index is not None:
            for number, _, match in find_paraphrases(
                records, self._index, self._embedder, self._answers
            ):
                best_match = best[number]
                if best_match is None or match.score > best_match.score:
                    best[number] = match
        return [None if match is None else [match.item, round(match.score, 6)] for match in best]

    @override
    def decide(self, record: Record, value: Any) -> FilterResult:
        if value is None:
            return FilterResult(True, score=0.0)
        item, score = value
        if score < self._settings.threshold:
            return FilterResult(True, score=score)
        reason, limit = "a test item in other words", self._settings.threshold
        return FilterResult(False, reason, score, limit, against=self._items[item])
