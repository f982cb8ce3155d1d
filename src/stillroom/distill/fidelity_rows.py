"""The lines of a fidelity report: what each is called, and how its value is made of a side.

Knows what was measured of one model, not how models stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.distill.fidelity import MEASURES, Answered, Side
from stillroom.distill.figures import Figures
from stillroom.evaluate import Metric
from stillroom.evaluate.calibration import BINS, calibration_error
from stillroom.evaluate.free_running import accumulated_error, distinct_share
from stillroom.text.normalize import exact_match, normalize_text, token_f1

__all__ = [
    "RIGHT_F1",
    "NearSide",
    "Row",
    "answer_rows",
    "belief_rows",
    "calibration_rows",
    "free_rows",
    "near_rows",
    "own_rows",
]

RIGHT_F1 = 0.5
_BELIEFS = (
    ("KL(teacher ‖ model)", "kl"),
    ("KL(model ‖ teacher)", "reverse_kl"),
    ("likeliest token agrees", "agreement"),
    ("five likeliest that are shared", "top5_overlap"),
    ("loss on the records' own tokens", "loss"),
    ("entropy", "entropy"),
    ("entropy less the teacher's", "entropy_gap"),
)
_OWN = (("loss on the records' own tokens", "loss"), ("entropy", "entropy"))
_OF_TEACHER = {"kl", "reverse_kl", "agreement", "top5_overlap", "entropy_gap"}

Values = tuple[Sequence[float], Sequence[float] | None]
"""One value for each unit of a side, and the weights of their mean, or None for equal ones."""


@dataclass(frozen=True)
class Row:
    """One line of a grid: a value for each unit of a side, or a statistic of the whole side.

    Args:
        label: In words.
        key: Within a metric's name.
        unit: Of the value.
        values: Gives them, of what was measured of a model.
        whole: Gives the statistic of a model, or of one less another, under a name.
        of_teacher: It says how far from the teacher: empty for the teacher itself.
    """

    label: str
    key: str
    unit: str
    values: Callable[[Any], Values] | None = None
    whole: Callable[[Side, Side | None, str], Metric] | None = None
    of_teacher: bool = False


@dataclass(frozen=True, slots=True)
class NearSide:
    """What one teacher's yardstick says of a model, or of the teacher itself."""

    figures: Figures[Any]
    is_teacher: bool = False


def belief_rows() -> list[Row]:
    """Return the lines of what a model says of the records beside a teacher in this process."""
    return [
        Row(label, key, MEASURES[key], _by_record(key), of_teacher=key in _OF_TEACHER)
        for label, key in _BELIEFS
    ]


def near_rows(kind: type[Figures[Any]]) -> list[Row]:
    """Return the lines that a yardstick's figures show, the teacher's own values among them."""

    def values(key: str, teachers: str) -> Callable[[NearSide], Values]:
        def of(side: NearSide) -> Values:
            name = teachers if side.is_teacher else key
            if not name:
                return [], None
            by = kind.measures[name][1]
            rows = [row for row in side.figures.rows if getattr(row, by)]
            return [float(getattr(row, name)) for row in rows], [getattr(row, by) for row in rows]

        return of

    return [
        Row(label, key or teachers, kind.measures[key or teachers][0], values(key, teachers))
        for label, key, teachers in kind.lines
    ]


def own_rows() -> list[Row]:
    """Return the lines of what a model says of the records by itself."""
    return [Row(label, key, "nats/token", _by_record(key)) for label, key in _OWN]


def _by_record(key: str) -> Callable[[Side], Values]:
    def values(side: Side) -> Values:
        rows = [row for row in side.fidelity.rows if row.tokens]
        return [float(getattr(row, key)) for row in rows], [row.tokens for row in rows]

    return values


def calibration_rows() -> list[Row]:
    """Return the lines on whether a probability that is said comes true."""

    def ece(side: Side, less: Side | None, name: str) -> Metric:
        return calibration_error(side.bins, None if less is None else less.bins, name=name)

    def of_half(key: str) -> Callable[[Side, Side | None, str], Metric]:
        def error(side: Side, less: Side | None, name: str) -> Metric:
            found = [
                np.array([getattr(row, key) for row in one.scaled]).reshape(-1, 3, BINS)
                for one in (side, less)
                if one is not None
            ]
            return calibration_error(*found, name=name)

        return error

    def temperature(side: Side, less: Side | None, name: str) -> Metric:
        value = side.temperature if side.temperature and less is None else math.nan
        fitted = int(len(side.bins) - len(side.scaled))
        return Metric(name, value, n=fitted, note="one fit, on every second record")

    def scaled(key: str) -> Callable[[Side], Values]:
        def values(side: Side) -> Values:
            return [float(getattr(row, key)) for row in side.scaled], [
                row.tokens for row in side.scaled
            ]

        return values

    return [
        Row("calibration error (ECE)", "ece", "", whole=ece),
        Row("Brier score, 0 to 2", "brier", "", _by_record("brier")),
        Row("fitted temperature", "temperature", "", whole=temperature),
        Row("ECE, the other half", "ece_half", "", whole=of_half("plain_bins")),
        Row("ECE, the other half, scaled", "ece_scaled", "", whole=of_half("bins")),
        Row("Brier score, the other half, scaled", "brier_scaled", "", scaled("brier")),
        Row("loss, the other half, scaled", "loss_scaled", "nats/token", scaled("loss")),
    ]


def free_rows() -> list[Row]:
    """Return the lines on how error grows in text that a model writes itself."""

    def mean(key: str) -> Callable[[Side], Values]:
        def values(side: Side) -> Values:
            rows = [row for row in getattr(side, key) if len(row)]
            return [float(row.mean()) for row in rows], [len(row) for row in rows]

        return values

    def excess(side: Side, less: Side | None, name: str) -> Metric:
        if not side.free or less is not None:
            return Metric(name, math.nan)
        return accumulated_error(side.free, side.forced, name=name)

    return [
        Row("KL on the teacher's text", "kl_forced", "nats/token", mean("forced"), None, True),
        Row("KL on its own text", "kl_free", "nats/token", mean("free"), None, True),
        Row("excess accumulated error", "excess_error", "", whole=excess, of_teacher=True),
    ]


def answer_rows(teacher: Sequence[Answered]) -> list[Row]:
    """Return the lines on answers; those on flips only where the teacher answered, too."""
    known = {one.record: one for one in teacher}

    def each(score: Callable[[Answered], float]) -> Callable[[Side], Values]:
        return lambda side: ([score(one) for one in side.answers], None)

    def beside(score: Callable[[Answered, Answered], float]) -> Callable[[Side], Values]:
        def values(side: Side) -> Values:
            both = [(one, known[one.record]) for one in side.answers if one.record in known]
            return [score(one, other) for one, other in both], None

        return values

    def distinct(n: int) -> Callable[[Side], Values]:
        return each(lambda one: _or(distinct_share(one.ids, n), 1.0))

    def flips(one: Answered, other: Answered) -> float:
        return float(normalize_text(one.text) != normalize_text(other.text))

    def lost(one: Answered, other: Answered) -> float:
        return float(_is_right(other) and not _is_right(one))

    of_teacher = [
        Row("answer flips", "flips", "", beside(flips), of_teacher=True),
        Row("right for the teacher, now wrong", "lost", "", beside(lost), of_teacher=True),
        Row(
            "wrong for the teacher, now right",
            "gained",
            "",
            beside(lambda one, other: lost(other, one)),
            of_teacher=True,
        ),
    ]
    return [
        *(of_teacher if teacher else ()),
        Row("F1", "f1", "", each(lambda one: token_f1(one.text, one.reference))),
        Row("exact match", "em", "", each(lambda one: exact_match(one.text, one.reference))),
        Row("length", "length", "tokens", each(lambda one: float(len(one.ids)))),
        Row("ended by itself", "ended", "", each(lambda one: float(one.has_ended))),
        Row("distinct words (distinct-1)", "distinct_1", "", distinct(1)),
        Row("distinct pairs (distinct-2)", "distinct_2", "", distinct(2)),
    ]


def _is_right(one: Answered) -> bool:
    return token_f1(one.text, one.reference) >= RIGHT_F1


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
