"""Reworded: no rephrased benchmark item, by embeddings and lexical anchors.

Source: Yang et al. 2023, arXiv:2311.04850 (rephrased samples). Differs: names, numbers and answers
stand beside the cosine (``text.rewording``), and no judge is asked; ``stillroom synth
decontaminate`` asks one. Looked for are the run's own held-out questions and those of the files
that ``against`` names. What finds copies is the filter ``decontaminate``. A record that could not
be embedded is dropped as that, never called clean. Where records are about the very documents that
the items are about, questions of one name look alike: a higher threshold then costs fewer records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.provenance import digest_json
from stillroom.recipes import Reference
from stillroom.records import Record
from stillroom.synth.dedup.leakage import (
    BenchmarkAnswers,
    LeakThresholds,
    WordFinder,
    read_benchmark_items,
    split_pieces,
)
from stillroom.synth.interfaces import FilterContext, FilterResult, ModelScoredFilter, ScoringState
from stillroom.synth.prompting.conversation import get_final_answer, get_text_field
from stillroom.text.dedup.contamination import count_document_frequencies
from stillroom.text.dedup.paraphrases import ParaphraseIndex, ParaphraseScore

__all__ = ["Reworded"]


class Reworded(ModelScoredFilter):
    """Drops training records that ask what a test item asks, in other words."""

    paper: ClassVar[str] = "arXiv:2311.04850"
    judges_passages: ClassVar[bool] = True

    embedder: Reference = Field(
        "hub:sentence-transformers/all-MiniLM-L6-v2", description="what tells likeness"
    )
    against: tuple[Reference, ...] = Field(
        (), description="files or artifacts of records whose questions must not be there"
    )
    threshold: float = Field(
        LeakThresholds().reworded, gt=0, description="score from which a text is a rewording"
    )

    @override
    def begin(self, context: FilterContext) -> ScoringState:
        return _RewordedState(self, context)


class _RewordedState(ScoringState):
    def __init__(self, chosen: Reworded, context: FilterContext) -> None:
        self._chosen = chosen
        found = {item.text: item.answer for item in read_benchmark_items(chosen.against)}
        for record in context.held_out:
            found.setdefault(get_text_field(record, "question"), get_final_answer(record))
        found.pop("", None)
        self._items = list(found)
        self._answers = BenchmarkAnswers(list(found.values()))
        self._embedder = context.models.embedder(chosen.embedder)
        counted = [one.text for one in context.passages.values()] or self._items
        frequency, count = count_document_frequencies(counted)
        self._index: ParaphraseIndex | None = None
        if self._items:
            words = WordFinder(
                self._items,
                self._answers,
                frequency=frequency,
                texts=count,
                near=LeakThresholds().near,
            )
            vectors = self._embedder.embed(words.asked, kind="passage")
            self._index = ParaphraseIndex(words.asked, vectors, frequency=frequency, texts=count)
        told = [self._embedder.fingerprint, sorted(found.items()), sorted(frequency.items()), count]
        self.fingerprint = digest_json(told)

    @override
    def measure(self, records: Sequence[Record]) -> list[Any]:
        pieces = [
            (at, *piece) for at, record in enumerate(records) for piece in split_pieces(record)
        ]
        best: list[ParaphraseScore | None] = [None] * len(records)
        if self._index is not None and pieces:
            vectors = self._embedder.embed([text for _, text, _ in pieces], kind="passage")
            answered = [self._answers.same_as(record) for record in records]
            denied = [self._answers.unlike(record) for record in records]
            for (at, text, is_stated), vector in zip(pieces, vectors, strict=True):
                found = self._index.find(
                    text, vector, answered[at], is_stated=is_stated, denied=denied[at]
                )
                known = best[at]
                if found is not None and (known is None or found.score > known.score):
                    best[at] = found
        return [None if one is None else [one.item, round(one.score, 6)] for one in best]

    @override
    def weigh(self, record: Record, value: Any) -> FilterResult:
        if value is None:
            return FilterResult(True, score=0.0)
        item, score = value
        if score < self._chosen.threshold:
            return FilterResult(True, score=score)
        reason, limit = "a test item in other words", self._chosen.threshold
        return FilterResult(False, reason, score, limit, against=self._items[item])
