"""Rows and curves of the fidelity report, from the measurements of each model and its metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.distill.evaluation.metrics import (
    METRIC_UNITS,
    GeneratedAnswer,
    ModelFidelity,
    RecordMetrics,
)
from stillroom.evaluate import Metric
from stillroom.evaluate.charts import LineChart, Series
from stillroom.evaluate.metrics.calibration import NUM_BINS, expected_calibration_error
from stillroom.evaluate.metrics.diversity import distinct_ngram_share, excess_accumulated_error
from stillroom.text.unicode import exact_match, normalize_text, token_f1

__all__ = [
    "CORRECT_F1",
    "ReportRow",
    "TeacherDistanceValues",
    "make_answer_rows",
    "make_calibration_rows",
    "make_depth_curves",
    "make_distance_rows",
    "make_distribution_rows",
    "make_free_generation_rows",
    "make_reliability_curves",
    "make_standalone_rows",
    "make_training_curves",
    "read_loss_curves",
]

CORRECT_F1 = 0.5

_DISTRIBUTION_ROWS = (
    ("KL(teacher ‖ model)", "kl"),
    ("KL(model ‖ teacher)", "reverse_kl"),
    ("likeliest token agrees", "agreement"),
    ("five likeliest that are shared", "top5_overlap"),
    ("loss on the records' own tokens", "loss"),
    ("entropy", "entropy"),
    ("entropy less the teacher's", "entropy_gap"),
)

_STANDALONE_ROWS = (("loss on the records' own tokens", "loss"), ("entropy", "entropy"))
_OF_TEACHER = {"kl", "reverse_kl", "agreement", "top5_overlap", "entropy_gap"}
Values = tuple[Sequence[float], Sequence[float] | None]
"""One value per unit of a model, and the weights of their mean, or None for equal weights."""


@dataclass(frozen=True)
class ReportRow:
    """One row of a table: a value per unit of a model, or a statistic of the whole model.

    Args:
        label: Displayed text.
        key: Part of the metric's name.
        unit: Unit of the value.
        values: Returns the values from the measurements of a model.
        whole: Returns the statistic of a model, or of the difference of two, under a name.
        of_teacher: Whether the row measures a distance to the teacher, which has no value itself.
    """

    label: str
    key: str
    unit: str
    values: Callable[[Any], Values] | None = None
    whole: Callable[[ModelFidelity, ModelFidelity | None, str], Metric] | None = None
    of_teacher: bool = False


@dataclass(frozen=True, slots=True)
class TeacherDistanceValues:
    """Distance metrics of a model to one teacher, or the teacher's own values."""

    figures: RecordMetrics[Any]
    is_teacher: bool = False


def make_distribution_rows() -> list[ReportRow]:
    """Return rows of distribution metrics, for a teacher in this process."""
    return [
        ReportRow(
            label, key, METRIC_UNITS[key], _read_by_record(key), of_teacher=key in _OF_TEACHER
        )
        for label, key in _DISTRIBUTION_ROWS
    ]


def make_distance_rows(kind: type[RecordMetrics[Any]]) -> list[ReportRow]:
    """Return the rows of a class of distance metrics, including the teacher's values."""

    def values(key: str, teachers: str) -> Callable[[TeacherDistanceValues], Values]:
        def of(side: TeacherDistanceValues) -> Values:
            name = teachers if side.is_teacher else key
            if not name:
                return [], None
            by = kind.measures[name][1]
            return _read_rows([row for row in side.figures.rows if getattr(row, by)], name, by)

        return of

    return [
        ReportRow(label, key or teachers, kind.measures[key or teachers][0], values(key, teachers))
        for label, key, teachers in kind.lines
    ]


def make_standalone_rows() -> list[ReportRow]:
    """Return rows of metrics that need no teacher."""
    return [
        ReportRow(label, key, "nats/token", _read_by_record(key)) for label, key in _STANDALONE_ROWS
    ]


def _read_by_record(key: str) -> Callable[[ModelFidelity], Values]:
    return lambda side: _read_rows([row for row in side.fidelity.rows if row.tokens], key)


def _read_rows(rows: Sequence[Any], key: str, by: str = "tokens") -> Values:
    """Return a field of each row, and the field that weights it."""
    return [float(getattr(row, key)) for row in rows], [getattr(row, by) for row in rows]


def make_calibration_rows() -> list[ReportRow]:
    """Return rows of calibration metrics."""

    def ece(side: ModelFidelity, baseline: ModelFidelity | None, name: str) -> Metric:
        return expected_calibration_error(
            side.bins, None if baseline is None else baseline.bins, name=name
        )

    def of_half(key: str) -> Callable[[ModelFidelity, ModelFidelity | None, str], Metric]:
        def error(side: ModelFidelity, baseline: ModelFidelity | None, name: str) -> Metric:
            bins = [
                np.array([getattr(row, key) for row in measurement.scaled]).reshape(-1, 3, NUM_BINS)
                for measurement in (side, baseline)
                if measurement is not None
            ]
            return expected_calibration_error(*bins, name=name)

        return error

    def temperature(side: ModelFidelity, baseline: ModelFidelity | None, name: str) -> Metric:
        value = side.temperature if side.temperature and baseline is None else math.nan
        fitted = int(len(side.bins) - len(side.scaled))
        return Metric(name, value, n=fitted, note="one fit, on every second record")

    def scaled(key: str) -> Callable[[ModelFidelity], Values]:
        return lambda side: _read_rows(side.scaled, key)

    return [
        ReportRow("calibration error (ECE)", "ece", "", whole=ece),
        ReportRow("Brier score, 0 to 2", "brier", "", _read_by_record("brier")),
        ReportRow("fitted temperature", "temperature", "", whole=temperature),
        ReportRow("ECE, the other half", "ece_half", "", whole=of_half("plain_bins")),
        ReportRow("ECE, the other half, scaled", "ece_scaled", "", whole=of_half("bins")),
        ReportRow("Brier score, the other half, scaled", "brier_scaled", "", scaled("brier")),
        ReportRow("loss, the other half, scaled", "loss_scaled", "nats/token", scaled("loss")),
    ]


def make_free_generation_rows() -> list[ReportRow]:
    """Return rows on error accumulation in generated text."""

    def mean(key: str) -> Callable[[ModelFidelity], Values]:
        def values(side: ModelFidelity) -> Values:
            rows = [row for row in getattr(side, key) if len(row)]
            return [float(row.mean()) for row in rows], [len(row) for row in rows]

        return values

    def excess(side: ModelFidelity, baseline: ModelFidelity | None, name: str) -> Metric:
        if not side.free or baseline is not None:
            return Metric(name, math.nan)
        return excess_accumulated_error(side.free, side.forced, name=name)

    return [
        ReportRow(
            "KL on the teacher's text", "kl_forced", "nats/token", mean("forced"), None, True
        ),
        ReportRow("KL on its own text", "kl_free", "nats/token", mean("free"), None, True),
        ReportRow("excess accumulated error", "excess_error", "", whole=excess, of_teacher=True),
    ]


def make_answer_rows(teacher: Sequence[GeneratedAnswer]) -> list[ReportRow]:
    """Return rows on answers; those on flips only if the teacher answered, too."""
    teacher_answers = {answer.record: answer for answer in teacher}

    def by_answer(score: Callable[[GeneratedAnswer], float]) -> Callable[[ModelFidelity], Values]:
        return lambda side: ([score(answer) for answer in side.answers], None)

    def by_pair(
        score: Callable[[GeneratedAnswer, GeneratedAnswer], float],
    ) -> Callable[[ModelFidelity], Values]:
        def values(side: ModelFidelity) -> Values:
            pairs = [
                (answer, teacher_answers[answer.record])
                for answer in side.answers
                if answer.record in teacher_answers
            ]
            return [score(answer, teacher_answer) for answer, teacher_answer in pairs], None

        return values

    def distinct(n: int) -> Callable[[ModelFidelity], Values]:
        return by_answer(lambda answer: distinct_ngram_share(answer.ids, n))

    def flips(answer: GeneratedAnswer, teacher_answer: GeneratedAnswer) -> float:
        return float(normalize_text(answer.text) != normalize_text(teacher_answer.text))

    def lost(answer: GeneratedAnswer, teacher_answer: GeneratedAnswer) -> float:
        return float(_is_correct(teacher_answer) and not _is_correct(answer))

    of_teacher = [
        ReportRow("answer flips", "flips", "", by_pair(flips), of_teacher=True),
        ReportRow("right for the teacher, now wrong", "lost", "", by_pair(lost), of_teacher=True),
        ReportRow(
            "wrong for the teacher, now right",
            "gained",
            "",
            by_pair(lambda answer, other: lost(other, answer)),
            of_teacher=True,
        ),
    ]
    return [
        *(of_teacher if teacher else ()),
        ReportRow(
            "F1", "f1", "", by_answer(lambda answer: token_f1(answer.text, answer.reference))
        ),
        ReportRow(
            "exact match",
            "em",
            "",
            by_answer(lambda answer: exact_match(answer.text, answer.reference)),
        ),
        ReportRow("length", "length", "tokens", by_answer(lambda answer: float(len(answer.ids)))),
        ReportRow(
            "ended by itself", "ended", "", by_answer(lambda answer: float(answer.has_ended))
        ),
        ReportRow("distinct words (distinct-1)", "distinct_1", "", distinct(1)),
        ReportRow("distinct pairs (distinct-2)", "distinct_2", "", distinct(2)),
    ]


def _is_correct(answer: GeneratedAnswer) -> bool:
    return token_f1(answer.text, answer.reference) >= CORRECT_F1


_MAX_POINTS = 48
_SCALED_STUDENT = "student, scaled"
_STYLES = {"student": 0, "baseline": 1, "start": 2, "teacher": 3, _SCALED_STUDENT: 4}


def make_reliability_curves(
    sides: Mapping[str, ModelFidelity], names: Mapping[str, str], scaled: str
) -> list[LineChart]:
    """Return reliability curves: predicted probability against accuracy, by model.

    Args:
        sides: Measurements by model.
        names: Display names of the models to plot, in order.
        scaled: Model that is also plotted after temperature scaling.
    """
    series = [
        _reliability(label, sides[name].bins) for name, label in names.items() if name in sides
    ]
    half = [np.array(row.bins) for row in sides[scaled].scaled]
    if half:
        series.append(_reliability(_SCALED_STUDENT, np.array(half)))
    return [
        LineChart(
            "Reliability: of the tokens to which a model gave about so much, the share that came. "
            "On the dotted line it is calibrated, below it is too sure; larger dots stand on more "
            "tokens. The scaled student is drawn on every second record.",
            "largest probability said",
            "share that came true",
            tuple(series),
            diagonal=True,
        )
    ]


def _reliability(name: str, bins: npt.NDArray[np.float64]) -> Series:
    count, confidence, correct = bins.reshape(-1, 3, NUM_BINS).sum(0)
    full = np.flatnonzero(count)
    return Series(
        name,
        tuple(
            (
                float(confidence[bin_index] / count[bin_index]),
                float(correct[bin_index] / count[bin_index]),
            )
            for bin_index in full
        ),
        tuple(float(count[bin_index]) for bin_index in full),
        _STYLES.get(name),
    )


def make_depth_curves(
    sides: Mapping[str, ModelFidelity], names: Mapping[str, str]
) -> list[LineChart]:
    """Return KL(teacher ‖ model) by position in the answer; empty without a local teacher."""
    series = []
    for name, label in names.items():
        pairs = sides[name].depth if name in sides else ()
        centers = [
            1.0,
            *(0.75 * 2.0**exponent + 0.5 for exponent in range(1, len(pairs))),
        ]  # middles of runs
        points = [
            (center, total / count)
            for center, (total, count) in zip(centers, pairs, strict=False)
            if count
        ]
        weights = tuple(count for _, count in pairs if count)
        series.append(Series(label, tuple(points), weights, _STYLES.get(label)))
    if not any(len(curve.points) > 1 for curve in series):
        return []
    return [
        LineChart(
            "KL(teacher ‖ model) along the held-out answers, in runs that double; larger dots "
            "stand on more tokens.",
            "token of the answer",
            "nats a token",
            tuple(series),
            is_log=True,
        )
    ]


def read_loss_curves(file: Path, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Return the values of metrics by step; of a repeated step, the last.

    Lines that a kill or a full disk cut are left out.
    """
    values: dict[str, dict[int, float]] = {name: {} for name in names}
    if file.is_file():
        for line in file.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if row.get("name") in values:
                values[row["name"]][int(row["step"])] = float(row["value"])
    return {name: sorted(steps.items()) for name, steps in values.items()}


def make_training_curves(losses: Mapping[str, Sequence[tuple[int, float]]]) -> list[LineChart]:
    """Return training losses by step, averaged over intervals if there are many.

    Args:
        losses: (step, value) pairs by display name.
    """
    series = []
    for name, points in losses.items():
        width = max(-(-len(points) // _MAX_POINTS), 1)
        runs = [points[start : start + width] for start in range(0, len(points), width)]
        means = tuple(
            (float(np.mean([x for x, _ in run])), float(np.mean([y for _, y in run])))
            for run in runs
        )
        series.append(Series(name, means))
    if not any(len(curve.points) > 1 for curve in series):
        return []
    return [
        LineChart(
            "Training: the loss that each one lowered. They are different losses, so that only the "
            "course of each tells something.",
            "optimizer step",
            "loss",
            tuple(series),
        )
    ]
