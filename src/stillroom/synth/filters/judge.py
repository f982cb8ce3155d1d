"""Judge: LLM-as-a-judge rubric scores, kept from ``min_score``; pairs compared in both orders.

Source: Zheng et al. 2023, arXiv:2306.05685 (models as judges and their biases; PrometheusEval). A
score is the expected mark under the judge's probabilities where its engine provides them (Liu et
al. 2023, arXiv:2303.16634). A record with a field ``rejected`` is a pair: it is kept if its answer
wins. With human ``labels`` the judges' scale is fitted to them (isotonic or Platt) before it is
compared with ``min_score``. The report gives the judges' agreement (Krippendorff), the share of
verdicts that changed with the order, the correlation of score and length, and whether a judge also
wrote the records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.evaluate.judges import RubricJudge
from stillroom.evaluate.metrics.agreement import IsotonicScaler, PlattScaler, krippendorff_alpha
from stillroom.objects import resolve_local
from stillroom.provenance import digest_json
from stillroom.recipes import DISTINCT, Reference
from stillroom.records import Record, read_records
from stillroom.synth.interfaces import (
    FilterContext,
    FilterResult,
    ModelScoredFilter,
    ScoringState,
    get_concurrency,
)
from stillroom.synth.prompting.conversation import (
    get_history,
    get_last_answer,
    get_last_instruction,
)
from stillroom.synth.prompting.requests import fence_text

__all__ = ["Judge"]

_RUBRIC = {
    "correct": "Everything that the answer says is true.",
    "to the point": "The answer answers this question, all of it and nothing else.",
    "clear": "The answer is well written and can be understood at once.",
}
_HUMAN = "human_score"
_HALF = 0.5
_FEWEST = 5


class Judge(ModelScoredFilter):
    """LLM judge: drop records rated poorly by its rubric, and pairs whose chosen answer loses."""

    paper: ClassVar[str] = "arXiv:2306.05685"

    judges: Annotated[tuple[Reference, ...], DISTINCT] = Field(
        min_length=1, description="models that judge; preferably not those that wrote the records"
    )
    rubric: Mapping[str, str] = Field(
        default_factory=lambda: dict(_RUBRIC),
        description="criteria by name, each with the requirement for a good answer",
    )
    scale: int = Field(5, ge=2, le=9, description="highest mark; the lowest is 1")
    min_score: float = Field(
        3.0,
        description="minimum mean score of judges and criteria, on the human scale if "
        "labels are given",
    )
    min_chance: float = Field(
        0.5,
        ge=0.5,
        lt=1,
        description="minimum probability of a pair's chosen answer, mean of judges and both orders",
    )
    labels: Reference | None = Field(
        None,
        description="file of records with human scores in the field human_score: the judges' "
        "scale is fitted to them",
    )
    calibration: Literal["isotonic", "platt"] = Field(
        "isotonic",
        description="method of fitting the judges' scale to the human one; platt for yes and no",
    )

    @override
    def start(self, context: FilterContext) -> ScoringState:
        return _JudgeState(self, context)


class _JudgeState(ScoringState):
    def __init__(self, settings: Judge, context: FilterContext) -> None:
        self._settings = settings
        models = [context.models.text_model(reference) for reference in settings.judges]
        self.concurrency = get_concurrency(models)
        self._judges = [
            RubricJudge(model, settings.rubric, scale=settings.scale, seed=context.seed)
            for model in models
        ]
        self._names = [model.fingerprint for model in models]
        self.fingerprint = digest_json([*(judge.fingerprint for judge in self._judges), "talk"])
        self._calibration = _read_calibration_records(settings.labels)
        self._scaler: IsotonicScaler | PlattScaler | None = None
        self._fit_summary: dict[str, Any] = {}

    @override
    def measure(self, record: Record) -> Any:
        question, answer = get_last_instruction(record), get_last_answer(record)
        rejected = record.fields.get("rejected")
        talk = get_history(record)
        context = f"Talk so far:\n{fence_text(talk)}\n\n" if talk else ""
        facts = {"id": record.id, "length": len(answer), "own": _wrote(record, self._names)}
        if isinstance(rejected, str):
            task = f"{context}Question:\n{fence_text(question)}"
            verdicts = [
                verdict.compare([(task, answer, rejected)])[0].to_json() for verdict in self._judges
            ]
            if any(verdict["winner"] is None for verdict in verdicts):
                return {"failed": "a judge gave no verdict"}
            return {**facts, "pairs": verdicts}
        task = f"{context}Question:\n{fence_text(question)}\n\nAnswer:\n{fence_text(answer)}"
        ratings = [judge.rate([task])[0] for judge in self._judges]
        if any(rating.mean is None for rating in ratings):
            return {"failed": "a judge gave no mark"}
        return {**facts, "ratings": [rating.to_json() for rating in ratings]}

    @override
    def decide(self, record: Record, value: Any) -> FilterResult:
        if "pairs" in value:
            chance = math.fsum(verdict["chance"] for verdict in value["pairs"]) / len(
                value["pairs"]
            )
            wins = sum(verdict["winner"] == "first" for verdict in value["pairs"])
            details = {"judges": value["pairs"]}
            if wins * 2 <= len(value["pairs"]) or chance <= self._settings.min_chance:
                limit = self._settings.min_chance
                return FilterResult(
                    False, "the chosen answer is not better", chance, limit, details=details
                )
            return FilterResult(True, score=chance, details=details)
        raw = _mean_of(value)
        score = self._to_people(raw)
        details = {"judges": value["ratings"], **({"raw": raw} if score != raw else {})}
        if score < self._settings.min_score:
            return FilterResult(
                False, "judged poor", score, self._settings.min_score, details=details
            )
        return FilterResult(True, score=score, details=details)

    @override
    def calibration_records(self) -> Sequence[Record]:
        return self._calibration

    @override
    def calibrate(self, values: Sequence[Any]) -> None:
        scored = [
            (_mean_of(value), float(record.fields[_HUMAN]))
            for record, value in zip(self._calibration, values, strict=True)
            if "ratings" in value
        ]
        scores, labels = [score for score, _ in scored], [label for _, label in scored]
        if self._settings.calibration == "platt":
            top = self._settings.scale - 1
            chances = [(score - 1) / top for score in scores]
            self._scaler = PlattScaler.fit(chances, [label > _HALF for label in labels])
        else:
            self._scaler = IsotonicScaler.fit(scores, labels)
        gaps = [abs(self._to_people(score) - label) for score, label in scored]
        self._fit_summary = {
            "fitted to": len(scored),
            "mean gap to people before": _plain(_mean(abs(a - b) for a, b in scored)),
            "mean gap to people after, on the same": _plain(_mean(gaps)),
        }

    def _to_people(self, score: float) -> float:
        if isinstance(self._scaler, PlattScaler):
            return self._scaler.apply((score - 1) / (self._settings.scale - 1))
        return self._scaler.apply(score) if self._scaler is not None else score

    @override
    def summarize(self, values: Sequence[Any]) -> Mapping[str, Any]:
        rated = [value for value in values if "ratings" in value]
        pairs = [value for value in values if "pairs" in value]
        failed = sum("failed" in value for value in values)
        summary: dict[str, Any] = {"judged": len(values), "failed": failed, **self._fit_summary}
        summary["judged by their own writer"] = sum(bool(value.get("own")) for value in values)
        if rated:
            rows = [
                [_mean(verdict["scores"].values()) for verdict in value["ratings"]]
                for value in rated
            ]
            lengths = [value["length"] for value in rated]
            summary["ways"] = sorted(
                {verdict["way"] for value in rated for verdict in value["ratings"]}
            )
            summary["alpha"] = _plain(krippendorff_alpha(rows)) if len(self._judges) > 1 else None
            summary["correlation with length"] = _plain(
                _correlate([_mean(row) for row in rows], lengths)
            )
        if pairs:
            verdicts = [verdict for value in pairs for verdict in value["pairs"]]
            summary["turned with the order"] = sum(
                verdict["flipped"] for verdict in verdicts
            ) / len(verdicts)
            marks = {"first": 1.0, "tie": 0.5, "second": 0.0}
            rows = [[marks[verdict["winner"]] for verdict in value["pairs"]] for value in pairs]
            summary["pair alpha"] = (
                _plain(krippendorff_alpha(rows)) if len(self._judges) > 1 else None
            )
        return summary


def _read_calibration_records(reference: str | None) -> list[Record]:
    if reference is None:
        return []
    records = [record for record in read_records(resolve_local(reference)) if _is_scored(record)]
    if len(records) < _FEWEST:
        raise DataError(
            f"{reference} holds {len(records)} records with a human score",
            code="synth.labels",
            where=reference,
            expected=f"at least {_FEWEST} records with a number in the field '{_HUMAN}'",
            next="take some of records.jsonl and dropped.jsonl, and score them",
        )
    return records


def _is_scored(record: Record) -> bool:
    score = record.fields.get(_HUMAN)
    return isinstance(score, int | float) and "rejected" not in record.fields


def _wrote(record: Record, judges: Sequence[str]) -> bool:
    return any(link.model and link.model in judges for link in record.origin.chain)


def _mean_of(value: Mapping[str, Any]) -> float:
    return _mean([_mean(rating["scores"].values()) for rating in value["ratings"]])


def _mean(scores: Any) -> float:
    known = [float(score) for score in scores]
    return math.fsum(known) / len(known)


def _correlate(first: Sequence[float], second: Sequence[float]) -> float:
    if len(first) < 3 or np.std(first) == 0 or np.std(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def _plain(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
