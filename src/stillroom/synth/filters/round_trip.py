"""Round trip: a model reproduces the answer with the passage and fails without it.

Source: Alberti et al. 2019, arXiv:1906.05416 (roundtrip consistency). Answers are compared by
SQuAD's word F1, or by whether one contains the other. With ``max_without`` below 1 the question is
also asked without the passage: if the model answers it anyway, the record teaches nothing about the
documents. A weak model finds good questions unanswerable; the report counts the records dropped.
"""

from __future__ import annotations

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
    """Drop questions that a model cannot answer from the passage, or answers without it."""

    paper: ClassVar[str] = "arXiv:1906.05416"

    model: Reference = Field(
        description="model that answers; preferably not the one that wrote the records"
    )
    min_with: float = Field(
        0.5,
        ge=0,
        le=1,
        description="minimum similarity of its answer from the passage to the record's",
    )
    max_without: float = Field(
        1.0,
        ge=0,
        le=1,
        description="maximum similarity of its answer without the passage; 1 skips this check",
    )
    max_new_tokens: int = Field(64, ge=4, le=1024, description="maximum tokens of an answer")

    @override
    def start(self, context: FilterContext) -> ScoringState:
        return _RoundTripState(self, context)


class _RoundTripState(ScoringState):
    def __init__(self, settings: RoundTrip, context: FilterContext) -> None:
        self._settings, self._context = settings, context
        self._model = context.models.text_model(settings.model)
        self.concurrency = get_concurrency([self._model])
        self._asks_twice = settings.max_without < 1
        self.fingerprint = digest_json(
            [self._model.fingerprint, settings.max_new_tokens, self._asks_twice]
        )

    @override
    def measure(self, record: Record) -> Any:
        passage = get_evidence_passage(record, self._context)
        source = passage.text if passage is not None else get_evidence_quote(record)
        question, answer = get_last_instruction(record), get_last_answer(record)
        if not question.strip() or not source.strip():
            return {"failed": "it has no question, or names no passage"}
        texts = [f"{fence_text(source)}\n\nQuestion: {question}\nAnswer from the text."]
        texts += [f"Question: {question}"] if self._asks_twice else []
        prompts = [Prompt((Message("system", _RULES), Message("user", text))) for text in texts]
        sampling = Sampling(max_new_tokens=self._settings.max_new_tokens)
        answers = [
            completion.text.strip() for completion in self._model.generate(prompts, sampling)
        ]
        value = {"with": _compute_similarity(answers[0], answer), "answer": answers[0]}
        if self._asks_twice:
            value |= {"without": _compute_similarity(answers[1], answer), "guess": answers[1]}
        return value

    @override
    def decide(self, record: Record, value: Any) -> FilterResult:
        settings = self._settings
        details = {"answer": value["answer"], "guess": value.get("guess", "")}
        if value["with"] < settings.min_with:
            reason = "a model answers otherwise from the passage"
            return FilterResult(False, reason, value["with"], settings.min_with, details=details)
        if value.get("without", 0.0) > settings.max_without:
            reason = "a model answers without the passage"
            return FilterResult(
                False, reason, value["without"], settings.max_without, details=details
            )
        return FilterResult(True, score=value["with"])


def _compute_similarity(answer: str, expected: str) -> float:
    """Return the word F1, or 1 if one answer contains the other."""
    answer_words, expected_words = split_words(answer), split_words(expected)
    short, long = sorted((answer_words, expected_words), key=len)
    if short and f" {' '.join(short)} " in f" {' '.join(long)} ":
        return 1.0
    return token_f1(answer, expected)
