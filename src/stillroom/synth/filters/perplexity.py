"""Perplexity: how surprising a causal model finds a record, over all of it and at its worst window.

Source: Wenzek et al. 2020, arXiv:1911.00359 (CCNet: perplexity as a measure of quality). Differs:
any causal checkpoint may judge, and the worst window counts by itself, so that a stretch of noise
in a long text is not averaged away. What is too predictable (loops, boilerplate) falls as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.provenance import digest_json
from stillroom.recipes import Reference
from stillroom.records import Record
from stillroom.synth.measured import Measured, Meter, each_by_itself
from stillroom.synth.method import Context, Verdict
from stillroom.synth.surprise import measure_surprise
from stillroom.synth.turns import answer_of, whole_text

__all__ = ["Perplexity"]


class Perplexity(Measured):
    """Drops texts that a language model finds too surprising, or too plain."""

    paper: ClassVar[str] = "arXiv:1911.00359"
    judges_passages: ClassVar[bool] = True

    model: Reference = Field(
        "hub:HuggingFaceTB/SmolLM2-135M-Instruct", description="the causal model that judges"
    )
    of: Literal["answer", "whole"] = Field("answer", description="what is judged")
    window: int = Field(256, ge=16, description="tokens of a window")
    min_perplexity: float = Field(2.0, ge=1, description="less is too predictable")
    max_perplexity: float = Field(1000.0, gt=1, description="more is too surprising, over all")
    max_window: float = Field(2000.0, gt=1, description="more is too surprising, in any window")

    @override
    def begin(self, context: Context) -> Meter:
        return _Perplexed(self, context)


class _Perplexed(Meter):
    def __init__(self, chosen: Perplexity, context: Context) -> None:
        self._chosen = chosen
        self._model = context.models.text_model(chosen.model)
        self.fingerprint = digest_json([self._model.fingerprint, chosen.of, chosen.window])

    @override
    def measure(self, records: Sequence[Record]) -> list[Any]:
        return each_by_itself(records, self._measure)

    def _measure(self, record: Record) -> Any:
        text = answer_of(record) if self._chosen.of == "answer" else whole_text(record)
        found = measure_surprise(self._model, text, window=self._chosen.window)
        if not found.tokens:
            return {"failed": "there is no text"}
        worst = math.exp(min(found.worst, 700.0))
        return {"perplexity": found.perplexity, "worst": worst, "tokens": found.tokens}

    @override
    def weigh(self, record: Record, value: Any) -> Verdict:
        chosen, whole, worst = self._chosen, value["perplexity"], value["worst"]
        if whole > chosen.max_perplexity:
            return Verdict(False, "too surprising", whole, chosen.max_perplexity)
        if worst > chosen.max_window:
            return Verdict(False, "a stretch is too surprising", worst, chosen.max_window)
        if whole < chosen.min_perplexity:
            return Verdict(False, "too predictable", whole, chosen.min_perplexity)
        return Verdict(True, score=whole)
