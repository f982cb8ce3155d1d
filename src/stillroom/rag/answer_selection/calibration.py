"""Calibration of a sentence reader: scored readings, the weights of a score, and the probability.

Source: Platt 1999 (a logistic function of the margin); Kamath et al. 2020, "Selective Question
Answering under Domain Shift", arXiv:2006.09462 (fitted on questions from documents that were not
trained on); Chelba and Acero 2004, "Adaptation of Maximum Entropy Capitalizer" (fitted further
with a Gaussian prior around what is there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.evaluate.metrics.bootstrap import MIN_UNITS
from stillroom.evaluate.metrics.calibration import fit_logistic_weights
from stillroom.rag.answer_selection.examples import ReaderPassage
from stillroom.rag.answer_selection.overlap import QuestionOverlap, ScoredSentence
from stillroom.rag.answer_selection.reader import FEATURES, SentenceReader, describe_reading

if TYPE_CHECKING:
    from stillroom.jobs import Job

__all__ = ["Readings", "ScoredReading", "calibrate", "recalibrate", "score_passages"]

_OVERLAP_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0)
_SHORT_WEIGHTS = (0.0, 0.2, 0.5)
_RANK_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0)
_PRIOR = 5.0  # chosen on two manuals; see the lab notebook
Weights = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ScoredReading:
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
        """Return what the probability is computed from; there must be a sentence."""
        scores = self._scores(weights)
        best = self.sentences[scores.index(max(scores))]
        return describe_reading(best, self.no_answer, self.compare(best))

    def probability(self, weights: Weights, calibration: Weights) -> float:
        """Return the probability that the best sentence answers."""
        features = self.describe(weights)
        value = sum(calibration[name] * feature for name, feature in features.items())
        return float(1 / (1 + np.exp(-np.clip(value + calibration["intercept"], -60, 60))))


Readings = tuple[ScoredReading, ScoredReading, ScoredReading]
"""A question with its passages, without those that answer, without their documents."""


def score_passages(
    reader: SentenceReader,
    overlap: QuestionOverlap,
    question: str,
    passages: Sequence[ReaderPassage],
) -> ScoredReading:
    """Return the scores of labeled passages, as the reader gives them when it answers."""
    reading = reader.read(
        question, [(part.title, part.text, part.sentences) for part in passages], overlap
    )
    labels = [dict(zip(part.sentences, part.answers, strict=True)) for part in passages]

    @cache
    def compare(found: ScoredSentence) -> float:
        return reader.compare(question, passages[found.passage].text[found.start : found.end])

    return ScoredReading(
        list(reading.sentences),
        [labels[found.passage][found.start, found.end] for found in reading.sentences],
        reading.no_answer,
        compare,
    )


def calibrate(
    shown: Sequence[ScoredReading],
    unanswerable: Sequence[ScoredReading],
    readings: Sequence[Readings],
    silent: float,
    job: Job,
) -> dict[str, Any]:
    """Return the weights of a score, the calibration and the threshold.

    The threshold silences the given share of the questions without an answer: those of the question
    set, and the others without any passage of the documents that answer.
    """
    weights = max(
        (
            {"overlap": overlap, "short": short, "rank": rank}
            for overlap in _OVERLAP_WEIGHTS
            for short in _SHORT_WEIGHTS
            for rank in _RANK_WEIGHTS
        ),
        key=lambda tried: sum(scores.is_first_right(tried) for scores in shown),
    )
    rows = [scores for row in readings for scores in row if scores.sentences]
    if not rows:
        job.say("no question was held out: the reader is not calibrated, and never silent")
        return {"threshold": 0.0}
    features = [scores.describe(weights) for scores in rows]
    names = list(features[0])
    labels = np.array([scores.is_first_right(weights) for scores in rows], dtype=np.float64)
    design = np.array([[*(row[name] for name in names), 1.0] for row in features])
    fitted = fit_logistic_weights(design, labels, ridge=1e-3)
    calibration = dict(zip([*names, "intercept"], map(float, fitted), strict=True))
    unanswered = sorted(
        scores.probability(weights, calibration)
        for scores in (*unanswerable, *(foreign for _, _, foreign in readings))
        if scores.sentences
    )
    if len(unanswered) < MIN_UNITS:
        job.say(
            f"the threshold rests on {len(unanswered)} questions without any document that answers;"
            " with more documents and questions it is better founded"
        )
    position = min(len(unanswered) - 1, round(silent * len(unanswered)))
    return {
        "calibration": {name: round(value, 6) for name, value in calibration.items()},
        "weights": weights,
        "threshold": round(unanswered[position], 6) if unanswered else 0.0,
    }


def recalibrate(
    config: Mapping[str, Any], answerable: Sequence[ScoredReading], opened: Sequence[ScoredReading]
) -> dict[str, Any] | None:
    """Return a reader's calibration and threshold, moved toward questions about other documents.

    The logistic model starts from the reader's: the ridge is on the distance from it, in standard
    deviations of the features, so that few questions change little. The threshold leaves as many of
    the open questions unanswered as the reader did at its own.

    Args:
        config: The reader's configuration; its weights of a score stay.
        answerable: Readings of questions with an answer.
        opened: Readings of questions that the documents leave open.

    Returns:
        ``calibration`` and ``threshold``; None with fewer than ``MIN_UNITS`` open questions, or
        as many others.
    """
    weights = config["weights"]
    answerable, opened = ([one for one in part if one.sentences] for part in (answerable, opened))
    if min(len(answerable), len(opened)) < MIN_UNITS:
        return None
    names = FEATURES[:-1]
    rows = [one.describe(weights) for one in (*answerable, *opened)]
    features = np.array([[row[name] for name in names] for row in rows])
    labels = np.array(
        [one.is_first_right(weights) for one in answerable] + [False] * len(opened), dtype=float
    )
    before = np.array([config["calibration"][name] for name in FEATURES])
    scale = features.std(axis=0) + 1e-9
    mean = features.mean(axis=0)
    design = np.column_stack([(features - mean) / scale, np.ones(len(rows))])
    logits = features @ before[:-1] + before[-1]
    moved = fit_logistic_weights(design, labels, ridge=_PRIOR, offsets=logits)
    slopes = moved[:-1] / scale
    fitted = before + np.append(slopes, moved[-1] - mean @ slopes)
    calibration = {
        name: round(float(value), 6) for name, value in zip(FEATURES, fitted, strict=True)
    }
    silent = sum(
        one.probability(weights, config["calibration"]) < config["threshold"] for one in opened
    )
    chances = sorted(one.probability(weights, calibration) for one in opened)
    threshold = (chances[silent - 1] if silent else 0.0) + 1e-6
    return {"calibration": calibration, "threshold": round(threshold, 6)}
