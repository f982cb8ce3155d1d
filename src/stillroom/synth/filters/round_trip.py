"""Round trip: a model answers the question from the passage as the record does, and not without it.

Source: Alberti et al. 2019, arXiv:1906.05416 (roundtrip consistency). Answers are compared by
SQuAD's F1 of words, or by whether one holds the other. With ``max_without`` below 1 the question is
asked without the passage too: what a model answers all the same teaches nothing of the documents.
A model that cannot read well calls good questions unanswerable; the report tells how many fell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.provenance import digest_json
from stillroom.recipes import Reference
from stillroom.records import Message, Prompt, Record, Sampling
from stillroom.synth.asking import fence
from stillroom.synth.evidence import passage_of, quote_of
from stillroom.synth.measured import Measured, Meter, concurrency_of, each_by_itself
from stillroom.synth.method import Context, Verdict
from stillroom.synth.turns import answer_of, instruction_of
from stillroom.text.normalize import token_f1, words

__all__ = ["RoundTrip"]

_RULES = "You answer questions in one short sentence. If you do not know, you say: unknown."


class RoundTrip(Measured):
    """Drops questions that a model cannot answer from the passage, or answers without it."""

    paper: ClassVar[str] = "arXiv:1906.05416"

    model: Reference = Field(description="the model that answers; better another than wrote")
    min_with: float = Field(
        0.5, ge=0, le=1, description="likeness of its answer from the passage to the record's"
    )
    max_without: float = Field(
        1.0, ge=0, le=1, description="likeness of its answer without the passage; 1 asks nothing"
    )
    max_new_tokens: int = Field(64, ge=4, le=1024, description="longest answer")

    @override
    def begin(self, context: Context) -> Meter:
        return _Answering(self, context)


class _Answering(Meter):
    def __init__(self, chosen: RoundTrip, context: Context) -> None:
        self._chosen, self._context = chosen, context
        self._model = context.models.text_model(chosen.model)
        self.concurrency = concurrency_of([self._model])
        self._asks_twice = chosen.max_without < 1
        self.fingerprint = digest_json(
            [self._model.fingerprint, chosen.max_new_tokens, self._asks_twice]
        )

    @override
    def measure(self, records: Sequence[Record]) -> list[Any]:
        return each_by_itself(records, self._measure)

    def _measure(self, record: Record) -> Any:
        passage = passage_of(record, self._context)
        source = passage.text if passage is not None else quote_of(record)
        asked, said = instruction_of(record), answer_of(record)
        if not asked.strip() or not source.strip():
            return {"failed": "it has no question, or names no passage"}
        texts = [f"{fence(source)}\n\nQuestion: {asked}\nAnswer from the text."]
        texts += [f"Question: {asked}"] if self._asks_twice else []
        prompts = [Prompt((Message("system", _RULES), Message("user", text))) for text in texts]
        sampling = Sampling(max_new_tokens=self._chosen.max_new_tokens)
        answers = [one.text.strip() for one in self._model.generate(prompts, sampling)]
        found = {"with": _liken(answers[0], said), "answer": answers[0]}
        if self._asks_twice:
            found |= {"without": _liken(answers[1], said), "guess": answers[1]}
        return found

    @override
    def weigh(self, record: Record, value: Any) -> Verdict:
        chosen, told = self._chosen, {"answer": value["answer"], "guess": value.get("guess", "")}
        if value["with"] < chosen.min_with:
            reason = "a model answers otherwise from the passage"
            return Verdict(False, reason, value["with"], chosen.min_with, told=told)
        if value.get("without", 0.0) > chosen.max_without:
            reason = "a model answers without the passage"
            return Verdict(False, reason, value["without"], chosen.max_without, told=told)
        return Verdict(True, score=value["with"])


def _liken(given: str, wanted: str) -> float:
    """Return F1 of words, or 1 where one answer is all in the other."""
    ours, theirs = words(given), words(wanted)
    short, long = sorted((ours, theirs), key=len)
    if short and f" {' '.join(short)} " in f" {' '.join(long)} ":
        return 1.0
    return token_f1(given, wanted)
