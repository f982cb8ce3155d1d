"""Quality: a small model of what readers call a poor question.

Source: logistic regression over counted features (``prompting.question_features``), fitted to the
verdicts of readers who did not know how the questions were made: good, minor or poor.
``quality.json`` holds its weights; ``quality.md`` tells what it was fitted on and measured with, and
``scripts/fit_quality.py`` fits it again. A question is poor if it needs its page to be understood,
is not answered by its answer, or is broken.
"""

from __future__ import annotations

import json
import math
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterContext, FilterResult, FilterState
from stillroom.synth.prompting.conversation import get_evidence_passage, get_text_field
from stillroom.synth.prompting.question_features import FolderWords, measure_question

__all__ = ["Quality"]


class Quality(Filter):
    """Drop questions that a reader would probably call poor."""

    paper: ClassVar[str] = "arXiv:1906.05416"

    min_quality: float = Field(
        0.5, ge=0, le=1, description="minimum probability that a question is not poor"
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        return FilterResult(True)

    @override
    def start(self, context: FilterContext) -> FilterState:
        return _QualityState(self, context)


class _QualityState(FilterState):
    def __init__(self, settings: Quality, context: FilterContext) -> None:
        self._settings, self._context = settings, context

    @cached_property
    def _folder(self) -> FolderWords:
        return FolderWords(self._context.passages.values())

    def judge(self, record: Record) -> FilterResult:
        question, answer = get_text_field(record, "question"), get_text_field(record, "answer")
        passage = get_evidence_passage(record, self._context)
        if not question or not answer or passage is None:
            return FilterResult(True)
        model = _load_weights()
        features = measure_question(question, answer, passage, self._folder)
        total = model["intercept"] + sum(
            weight * max(-_MOST, min(_MOST, (features[name] - mean) / scale))
            for name, (mean, scale, weight) in model["features"].items()
        )
        score, limit = 1 / (1 + math.exp(-total)), self._settings.min_quality
        if score < limit:
            return FilterResult(False, "probably a poor question", score, limit)
        return FilterResult(True, score=score)


_MOST = 4.0
"""Standard deviations beyond which a feature says no more."""


@cache
def _load_weights() -> dict[str, Any]:
    text = files("stillroom.synth.filters").joinpath("quality.json").read_text("utf-8")
    model: dict[str, Any] = json.loads(text)
    return model
