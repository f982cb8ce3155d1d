"""Compare two readers on held-out questions, where both are as often silent without an answer.

Training moves a reader's probabilities as a whole, so at one threshold it is compared by how often
it speaks. Source: equipercentile equating (Kolen & Brennan 2014, "Test Equating, Scaling, and
Linking", chapter 2) of the logits of the readings without an answer.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.errors import count_noun
from stillroom.evaluate.metrics.bootstrap import MIN_UNITS, Metric, paired_difference
from stillroom.evaluate.qa.questions import JudgedQuestion
from stillroom.provenance import Parent
from stillroom.rag.answer_selection.overlap import ScoredSentence
from stillroom.rag.answer_selection.reader import (
    BUILTIN_READER,
    LARGE_READER,
    MULTILINGUAL_READER,
    OVERLAP_READER,
    SMALL_READER,
    describe_reading,
)

__all__ = [
    "READER_NAMES",
    "HeldOutScores",
    "Readings",
    "StartComparison",
    "compare_readers",
    "describe_training",
    "find_start_name",
    "format_difference",
    "partition_readings",
    "rate_training",
]

READER_NAMES = {
    BUILTIN_READER: "the program's own reader",
    SMALL_READER: "the program's own reader",
    LARGE_READER: "the program's own large reader",
    MULTILINGUAL_READER: "the program's own multilingual reader",
    OVERLAP_READER: "word search",
}
"""What readers are called in sentences, by their references."""

Weights = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Scored sentences shown with a question, and which of them answer.

    ``compare`` returns the cosine of the question and a sentence; few are asked for.
    """

    sentences: list[ScoredSentence]
    answers: list[bool]
    no_answer: float
    compare: Callable[[ScoredSentence], float]

    def _scores(self, weights: Weights) -> list[float]:
        return [
            one.logit
            + weights["overlap"] * one.overlap
            + weights["short"] * one.short_logit
            - weights["rank"] * one.passage
            for one in self.sentences
        ]

    def is_first_right(self, weights: Weights) -> bool:
        """Return whether the best sentence answers."""
        scores = self._scores(weights)
        return bool(scores) and self.answers[scores.index(max(scores))]

    def describe(self, weights: Weights) -> dict[str, float]:
        """Return what the probability that the best sentence answers is computed from."""
        scored = zip(self._scores(weights), self.sentences, strict=True)
        ordered = [sentence for _, sentence in sorted(scored, key=lambda pair: -pair[0])]
        return describe_reading(ordered, self.no_answer, self.compare(ordered[0]))

    def logit(self, weights: Weights, calibration: Weights) -> float:
        """Return the logit of the probability that the best sentence answers."""
        features = self.describe(weights)
        logit = sum(calibration.get(name, 0.0) * value for name, value in features.items())
        return float(np.clip(logit + calibration["intercept"], -60, 60))

    def probability(self, weights: Weights, calibration: Weights) -> float:
        """Return the probability that the best sentence answers."""
        return float(1 / (1 + np.exp(-self.logit(weights, calibration))))


Readings = tuple[HeldOutScores, HeldOutScores, HeldOutScores]
"""A question's passages as retrieved, those without an answer, those of other documents."""


def partition_readings(
    questions: Sequence[JudgedQuestion], readings: Sequence[Readings]
) -> tuple[list[HeldOutScores], list[HeldOutScores]]:
    """Return the first readings of the questions with an answer, and of those without."""
    rows = [(one.is_answerable, row[0]) for one, row in zip(questions, readings, strict=True)]
    return (
        [scores for is_answerable, scores in rows if is_answerable],
        [scores for is_answerable, scores in rows if not is_answerable],
    )


@dataclass(frozen=True, slots=True)
class StartComparison:
    """Trained reader minus its start: right first sentences that are given.

    ``shift`` is added to the logit of the trained reader's probability, and ``silences`` is the
    number of readings without an answer that it rests on; ``settings`` of the reader hold it.
    """

    difference: Metric
    shift: float
    silences: int
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: null where nothing was measured."""
        metric = self.difference.to_json()
        count = self.difference.n
        return {
            "difference": metric["value"] if count else None,
            "low": metric["low"] if count else None,
            "high": metric["high"] if count else None,
            "n": count,
            **({"p_value": metric["p_value"]} if "p_value" in metric else {}),
            "shift": self.shift if self.silences else None,
        }


def find_start_name(parents: Iterable[Parent]) -> str:
    """Return what the reader is called that a training continued, by the reader's parents."""
    starts = (parent.path for parent in parents if parent.role == "start")
    return READER_NAMES.get(next(starts, ""), "the initial reader")


def describe_training(parents: Iterable[Parent], details: Mapping[str, Any]) -> str:
    """Return what training brought a reader that continues another; empty for other artifacts.

    Parents and details are those of the artifact.
    """
    if not details.get("reader") or "kept" not in details:
        return ""
    steps = (details.get("train") or {}).get("steps")
    trained = f"training {find_start_name(parents)}"
    trained += f" for {count_noun(steps, 'step')}" if steps else ""
    outcome, figure = rate_training(details)
    if outcome == "unmeasured":
        return (
            f"Whether {trained} helped was not measured, as no held-out question has an answer, "
            "so its weights are left unchanged."
        )
    count = count_noun(details["comparison"]["n"], "held-out question")
    if outcome == "few":
        return (
            f"{trained.capitalize()} is not shown to help, with {count} where {MIN_UNITS} are "
            "required, so its weights are left unchanged."
        )
    change = f"the share of {count} with a right first sentence changed by {figure}"
    kept = "so its weights are left unchanged"
    if outcome == "helped":
        kept = "so the trained weights are kept"
    result = outcome if outcome in {"helped", "hurt"} else "did not measurably help"
    return f"{trained.capitalize()} {result}: {change}, {kept}."


def rate_training(details: Mapping[str, Any]) -> tuple[str, str]:
    """Return the outcome of a training that continues another, and its difference.

    The outcome is helped, hurt, even, few (too few questions to tell) or unmeasured, by the test
    that kept or dropped the trained weights.
    """
    found = details.get("comparison") or {}
    if found.get("difference") is None:
        return "unmeasured", ""
    low, high = (math.nan if found.get(end) is None else found[end] for end in ("low", "high"))
    p_value = found.get("p_value", math.nan)
    metric = Metric("", found["difference"], low, high, found["n"], p_value=p_value)
    outcome = "few" if metric.is_few else "hurt" if metric.side() < 0 else "even"
    return "helped" if details["kept"] == "trained" else outcome, format_difference(metric)


def format_difference(metric: Metric) -> str:
    """Return a difference with what decides whether it is significant, or why there is none.

    That is its interval; if that does not hold 0 but McNemar's exact test objects, the p-value.
    """
    if metric.value != metric.value:
        return metric.note
    value = f"{metric.value:+.2f}"
    if not (metric.low > 0 or metric.high < 0) or metric.side():
        is_known = metric.low == metric.low
        return f"{value} [{metric.low:+.2f}, {metric.high:+.2f}]" if is_known else value
    if metric.is_few:
        return f"{value}, too few questions to tell"
    return f"{value}, McNemar's p = {metric.p_value:.2f}"


def compare_readers(
    questions: Sequence[JudgedQuestion],
    before: Sequence[Readings],
    after: Sequence[Readings],
    config: Mapping[str, Any],
) -> StartComparison:
    """Compare the readings of a trained reader with those of its start, whose settings both have.

    The trained reader's logits are shifted so that the threshold leaves no fewer readings without
    an answer unanswered: of questions that have none, and of the others without the documents that
    answer. A sentence below the threshold is no answer.
    """
    weights, calibration, threshold = (
        config[name] for name in ("weights", "calibration", "threshold")
    )

    def list_silences(readings: Sequence[Readings]) -> list[float]:
        without = (*partition_readings(questions, readings)[1], *(row[2] for row in readings))
        return [scores.logit(weights, calibration) for scores in without if scores.sentences]

    silences = list_silences(before)
    shift = _find_shift(silences, list_silences(after), threshold)
    shifted = {**calibration, "intercept": round(calibration["intercept"] + shift, 6)}

    def list_given(readings: Sequence[Readings], calibration: Weights) -> list[float]:
        shown, _ = partition_readings(questions, readings)
        return [
            float(
                scores.is_first_right(weights)
                and scores.probability(weights, calibration) >= threshold
            )
            for scores in shown
        ]

    difference = paired_difference(
        list_given(after, shifted), list_given(before, calibration), name="trained"
    )
    return StartComparison(difference, round(shift, 6), len(silences), {"calibration": shifted})


def _find_shift(before: Sequence[float], after: Sequence[float], threshold: float) -> float:
    """Return what to add to the later logits so that no fewer than before lie below a threshold.

    The threshold takes the place of the reading of the same rank: what lies between two ranks is
    silenced, since a guess within few readings lets silence fall (lab notebook). Beyond all of them
    it keeps its distance from the nearest one.
    """
    if not before or not 0 < threshold < 1:
        return 0.0
    place = math.log(threshold / (1 - threshold))
    first, second = sorted(before), sorted(after)
    rank = bisect_left(first, place)
    if 0 < rank < len(first):
        return place - second[rank]
    end = min(rank, len(first) - 1)
    return first[end] - second[end]
