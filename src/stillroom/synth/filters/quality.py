"""Quality: a small model of what language models call a poor question when they read it.

Source: logistic regression over counted features (``prompting.question_features``) and the
embedding of the question, fitted to the verdicts of language models that were not shown how
the questions were made. ``quality.json`` holds its weights, ``recipes/quality`` the verdicts, what
they were given for and what the model is worth; ``scripts/fit_quality.py`` fits it again. A
question is poor if it needs its page to be understood, is not answered by its answer, or is broken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.provenance import digest_json
from stillroom.records import Record
from stillroom.synth.interfaces import FilterContext, FilterResult, ModelScoredFilter, ScoringState
from stillroom.synth.prompting.conversation import get_evidence_passage, get_text_field
from stillroom.synth.prompting.question_features import (
    FolderWords,
    asks_of_all,
    measure_question,
)

__all__ = ["Quality"]

_EMBEDDER = "hub:sentence-transformers/all-MiniLM-L6-v2"
"""The weights are those of this embedder's directions."""

_MOST = 4.0
"""Standard deviations beyond which a feature says no more."""


class Quality(ModelScoredFilter):
    """Drop questions about passages that a reader would probably call poor."""

    paper: ClassVar[str] = "arXiv:1906.05416"

    min_quality: float = Field(
        0.75, ge=0, le=1, description="minimum probability that a reader does not call it poor"
    )

    @override
    def start(self, context: FilterContext) -> ScoringState:
        return _QualityState(self, context)


class _QualityState(ScoringState):
    def __init__(self, settings: Quality, context: FilterContext) -> None:
        self._settings, self._context = settings, context
        self._model = _load_weights()
        self._folder = FolderWords(context.passages.values())
        self.fingerprint = digest_json([_EMBEDDER, self._model, sorted(context.passages)])

    @override
    def score(self, records: Sequence[Record]) -> list[Any]:
        found = [self._measure(record) for record in records]
        asked = [get_text_field(record, "question") for record in records]
        common = [asks_of_all(question, self._folder) for question in asked]
        known = [n for n, features in enumerate(found) if features is not None and not common[n]]
        values: list[Any] = [0.0 if is_common else None for is_common in common]
        if not known:
            return values
        embedder = self._context.models.embedder(_EMBEDDER)
        vectors = embedder.embed([asked[index] for index in known], kind="passage")
        for index, vector in zip(known, vectors, strict=True):
            total = found[index] + sum(
                weight * float(value)
                for weight, value in zip(self._model["direction"], vector, strict=True)
            )
            values[index] = round(1 / (1 + math.exp(-total)), 6)
        return values

    def _measure(self, record: Record) -> float | None:
        """Return the log odds by the features alone; None for what is no question on a passage."""
        question, answer = get_text_field(record, "question"), get_text_field(record, "answer")
        passage = get_evidence_passage(record, self._context)
        if not question.strip() or not answer.strip() or passage is None:
            return None
        features = measure_question(question, answer, passage, self._folder)
        total: float = self._model["intercept"]
        for name, (mean, deviation, weight) in self._model["features"].items():
            total += weight * max(-_MOST, min(_MOST, (features[name] - mean) / deviation))
        return total

    @override
    def decide(self, record: Record, value: Any) -> FilterResult:
        limit = self._settings.min_quality
        if value is None:
            return FilterResult(True)
        if value == 0:
            return FilterResult(False, "asks what the subject of the whole folder does", value)
        if value < limit:
            return FilterResult(False, "probably a poor question", value, limit)
        return FilterResult(True, score=value, limit=limit)


@cache
def _load_weights() -> dict[str, Any]:
    text = files("stillroom.synth.filters").joinpath("quality.json").read_text("utf-8")
    model: dict[str, Any] = json.loads(text)
    return model
