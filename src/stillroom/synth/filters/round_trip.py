"""Round trip: a model reproduces the answer with the passage and fails without it.

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
from stillroom.synth.interfaces import (
    FilterContext,
    FilterResult,
    ModelScoredFilter,
    ScoringState,
    get_concurrency,
    score_individually,
)
from stillroom.synth.prompting.conversation import (
    get_evidence_passage,
    get_evidence_quote,
    get_last_answer,
    get_last_instruction,
)
from stillroom.synth.prompting.requests import fence_text
from stillroom.text.unicode import split_words, token_f1

__all__ = ["RoundTrip"]

_RULES = "You answer questions in one short sentence. If you do not know, you say: unknown."


class RoundTrip(ModelScoredFilter):
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
    def begin(self, context: FilterContext) -> ScoringState:
        return _RoundTripState(self, context)


class _RoundTripState(ScoringState):
    def __init__(self, chosen: RoundTrip, context: FilterContext) -> None:
        self._chosen, self._context = chosen, context
        self._model = context.models.text_model(chosen.model)
        self.concurrency = get_concurrency([self._model])
        self._asks_twice = chosen.max_without < 1
        self.fingerprint = digest_json(
            [self._model.fingerprint, chosen.max_new_tokens, self._asks_twice]
        )

    @override
    def measure(self, records: Sequence[Record]) -> list[Any]:
        return score_individually(records, self._measure)

    def _measure(self, record: Record) -> Any:
        passage = get_evidence_passage(record, self._context)
        source = passage.text if passage is not None else get_evidence_quote(record)
        asked, said = get_last_instruction(record), get_last_answer(record)
        if not asked.strip() or not source.strip():
            return {"failed": "it has no question, or names no passage"}
        texts = [f"{fence_text(source)}\n\nQuestion: {asked}\nAnswer from the text."]
        texts += [f"Question: {asked}"] if self._asks_twice else []
        prompts = [Prompt((Message("system", _RULES), Message("user", text))) for text in texts]
        sampling = Sampling(max_new_tokens=self._chosen.max_new_tokens)
        answers = [one.text.strip() for one in self._model.generate(prompts, sampling)]
        found = {"with": _compute_similarity(answers[0], said), "answer": answers[0]}
        if self._asks_twice:
            found |= {"without": _compute_similarity(answers[1], said), "guess": answers[1]}
        return found

    @override
    def weigh(self, record: Record, value: Any) -> FilterResult:
        chosen, told = self._chosen, {"answer": value["answer"], "guess": value.get("guess", "")}
        if value["with"] < chosen.min_with:
            reason = "a model answers otherwise from the passage"
            return FilterResult(False, reason, value["with"], chosen.min_with, told=told)
        if value.get("without", 0.0) > chosen.max_without:
            reason = "a model answers without the passage"
            return FilterResult(False, reason, value["without"], chosen.max_without, told=told)
        return FilterResult(True, score=value["with"])


def _compute_similarity(given: str, wanted: str) -> float:
    """Return F1 of words, or 1 where one answer is all in the other."""
    ours, theirs = split_words(given), split_words(wanted)
    short, long = sorted((ours, theirs), key=len)
    if short and f" {' '.join(short)} " in f" {' '.join(long)} ":
        return 1.0
    return token_f1(given, wanted)
