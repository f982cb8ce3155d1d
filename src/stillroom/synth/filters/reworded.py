"""Reworded: no test item told in other words is in the records, by an embedder and by anchors.

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
from stillroom.synth.evidence import text_of
from stillroom.synth.leak_check import Answers, Limits, WordFinder, cut_pieces, read_test_items
from stillroom.synth.measured import Measured, Meter
from stillroom.synth.method import Context, Verdict
from stillroom.synth.tasks import final_of
from stillroom.text.contamination import count_texts
from stillroom.text.rewording import Likeness, RewordingIndex

__all__ = ["Reworded"]


class Reworded(Measured):
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
        Limits().reworded, gt=0, description="score from which a text is a rewording"
    )

    @override
    def begin(self, context: Context) -> Meter:
        return _Compared(self, context)


class _Compared(Meter):
    def __init__(self, chosen: Reworded, context: Context) -> None:
        self._chosen = chosen
        found = {item.text: item.answer for item in read_test_items(chosen.against)}
        for record in context.held_out:
            found.setdefault(text_of(record, "question"), final_of(record))
        found.pop("", None)
        self._items = list(found)
        self._answers = Answers(list(found.values()))
        self._embedder = context.models.embedder(chosen.embedder)
        counted = [one.text for one in context.passages.values()] or self._items
        frequency, count = count_texts(counted)
        self._index: RewordingIndex | None = None
        if self._items:
            words = WordFinder(
                self._items, self._answers, frequency=frequency, texts=count, near=Limits().near
            )
            vectors = self._embedder.embed(words.asked, kind="passage")
            self._index = RewordingIndex(words.asked, vectors, frequency=frequency, texts=count)
        told = [self._embedder.fingerprint, sorted(found.items()), sorted(frequency.items()), count]
        self.fingerprint = digest_json(told)

    @override
    def measure(self, records: Sequence[Record]) -> list[Any]:
        pieces = [(at, *piece) for at, record in enumerate(records) for piece in cut_pieces(record)]
        best: list[Likeness | None] = [None] * len(records)
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
    def weigh(self, record: Record, value: Any) -> Verdict:
        if value is None:
            return Verdict(True, score=0.0)
        item, score = value
        if score < self._chosen.threshold:
            return Verdict(True, score=score)
        reason, limit = "a test item in other words", self._chosen.threshold
        return Verdict(False, reason, score, limit, against=self._items[item])
