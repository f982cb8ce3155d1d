"""The fidelity report: every side's numbers with intervals, side by side, and what they say.

Columns are the teacher, the start, the control and the student; the last one is student less
control on the same records. Knows what was measured, no models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.distill.control import CONTROL
from stillroom.distill.fidelity import MEASURES, Answered, Side
from stillroom.distill.measuring import TEACHER
from stillroom.evaluate import Metric, Plot, Report, bootstrap, paired_difference
from stillroom.evaluate.calibration import BINS, calibration_error
from stillroom.evaluate.free_running import accumulated_error, distinct_share
from stillroom.evaluate.page import draw_page
from stillroom.evaluate.report import Grid
from stillroom.jobs import atomic_write
from stillroom.text.normalize import exact_match, normalize_text, token_f1

__all__ = ["FINAL", "INITIAL", "Budget", "build_report", "write_fidelity"]

INITIAL, FINAL, _DIFFERENCE = "initial", "final", "student_minus_control"
_COLUMNS = {
    TEACHER: "teacher",
    INITIAL: "start",
    CONTROL: "control",
    FINAL: "student",
    _DIFFERENCE: "student − control",
}
_NAMES = {INITIAL: "start", FINAL: "student"}  # of sides in metrics, where unlike
_RIGHT_F1 = 0.5
_BELIEF_ROWS = (
    ("KL(teacher ‖ model)", "kl"),
    ("KL(model ‖ teacher)", "reverse_kl"),
    ("likeliest token agrees", "agreement"),
    ("five likeliest that are shared", "top5_overlap"),
    ("loss on the records' own tokens", "loss"),
    ("entropy less the teacher's", "entropy_gap"),
)
_OF_TEACHER = {"kl", "reverse_kl", "agreement", "top5_overlap", "entropy_gap"}


@dataclass(frozen=True, slots=True)
class Budget:
    """What one of student and control was given, and what it is: counted, not sampled."""

    steps: int
    tokens: int
    positions: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class _Row:
    """One line of a grid: a value for each unit of a side, or a statistic of the whole side."""

    label: str
    key: str
    unit: str
    values: Callable[[Side], tuple[Sequence[float], Sequence[float] | None]] | None = None
    whole: Callable[[Side, Side | None, str], Metric] | None = None
    of_teacher: bool = False  # says how far from the teacher: empty for the teacher itself


def build_report(
    sides: Mapping[str, Side],
    budgets: Mapping[str, Budget],
    *,
    title: str,
    seed: int,
    passed_over: Mapping[str, int],
) -> Report:
    """Return the report of a job.

    Args:
        sides: ``teacher``, ``initial``, ``final``, and ``control`` where there is one.
        budgets: Of ``final``, ``teacher`` and ``control``.
        title: Of the page.
        seed: Of the bootstrap.
        passed_over: Records that were not answered, by reason.
    """
    report = Report(title, _say_summary(sides, seed))
    if not sides[FINAL].fidelity.rows:
        return report
    builder = _Builder(report, sides, seed)
    builder.section(
        "Beliefs",
        "All models read the same held-out records; the assistant's tokens count. Means are over "
        "all tokens together, intervals over records.",
        _belief_rows(),
        plot="kl",
    )
    builder.section(
        "Calibration",
        "Whether a probability that is said comes true, for the token that stands in the record. "
        "The temperature is fitted on every second record and applied to the others: it is what "
        "one parameter can do, so compare with the lines after it.",
        _calibration_rows(),
    )
    if sides[TEACHER].answers:
        builder.section(
            "On their own text",
            "Each model samples from its whole distribution after the same prompts, and the "
            "teacher says at every depth how far off it is. The excess is how much more error "
            "accumulates on a model's own text than on the teacher's.",
            _free_rows(),
        )
        builder.section(
            "Answers",
            "The likeliest answer of each model. An answer flips where it differs from the "
            "teacher's after normalization; it is right where SQuAD's F1 against the record's "
            f"reference is at least {_RIGHT_F1}.",
            _answer_rows(sides[TEACHER].answers),
        )
    _add_budget(report, budgets)
    _add_left_out(report, passed_over)
    return report


def write_fidelity(folder: Path, report: Report, values: Mapping[str, Any]) -> None:
    """Write fidelity.json (``values`` and the report) and fidelity.html into ``folder``."""
    whole = {**values, "report": report.to_json()}
    with atomic_write(folder / "fidelity.json") as file:
        json.dump(whole, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    with atomic_write(folder / "fidelity.html") as file:
        file.write(draw_page(report.to_json()))


class _Builder:
    """Adds sections whose grids have one column a side."""

    def __init__(self, report: Report, sides: Mapping[str, Side], seed: int) -> None:
        self.report, self.sides, self.seed = report, sides, seed
        self.columns = [name for name in _COLUMNS if name in sides]
        if CONTROL in sides:
            self.columns.append(_DIFFERENCE)

    def section(self, title: str, text: str, rows: Sequence[_Row], *, plot: str = "") -> None:
        found = {(row.key, name): self._cell(row, name) for row in rows for name in self.columns}
        metrics = {place: metric for place, metric in found.items() if metric is not None}
        columns = [name for name in self.columns if any(name == side for _, side in metrics)]
        grid = Grid(
            f"{title}, side by side",
            tuple(_COLUMNS[name] for name in columns),
            tuple(
                (
                    row.label,
                    row.unit,
                    tuple(
                        metrics[row.key, name].name if (row.key, name) in metrics else ""
                        for name in columns
                    ),
                )
                for row in rows
            ),
        )
        shown = [
            (name, metrics[plot, name])
            for name in (INITIAL, CONTROL, FINAL)
            if plot and (plot, name) in metrics
        ]
        self.report.section(
            title,
            text,
            metrics=list(metrics.values()),
            grid=grid,
            plot=Plot.of(
                "Divergence from the teacher, KL(teacher ‖ model): less is nearer",
                [metric for _, metric in shown],
                labels=[_COLUMNS[name] for name, _ in shown],
            )
            if shown
            else None,
        )
        for name in (FINAL, _DIFFERENCE):
            if plot and (plot, name) in metrics:
                self.report.add(metrics[plot, name], is_headline=True)

    def _cell(self, row: _Row, name: str) -> Metric | None:
        if name == TEACHER and row.of_teacher:
            return None
        label = f"{_NAMES.get(name, name)}/{row.key}"
        ours = self.sides[FINAL if name == _DIFFERENCE else name]
        other = self.sides[CONTROL] if name == _DIFFERENCE else None
        if row.whole is not None:
            metric = row.whole(ours, other, label)
            return None if math.isnan(metric.value) else metric
        return self._mean(row, ours, other, label)

    def _mean(self, row: _Row, ours: Side, other: Side | None, label: str) -> Metric | None:
        if row.values is None:
            return None
        values, weights = row.values(ours)
        if not values:
            return None
        if other is None:
            return bootstrap(values, weights=weights, seed=self.seed, name=label, unit=row.unit)
        theirs, _ = row.values(other)
        pairs = [
            (at, a, b)
            for at, (a, b) in enumerate(zip(values, theirs, strict=True))
            if math.isfinite(a) and math.isfinite(b)
        ]
        return paired_difference(
            [a for _, a, _ in pairs],
            [b for _, _, b in pairs],
            weights=None if weights is None else [weights[at] for at, _, _ in pairs],
            seed=self.seed,
            name=label,
            unit=row.unit,
        )


def _belief_rows() -> list[_Row]:
    return [
        _Row(label, key, MEASURES[key], _by_record(key), of_teacher=key in _OF_TEACHER)
        for label, key in _BELIEF_ROWS
    ]


def _by_record(key: str) -> Callable[[Side], tuple[Sequence[float], Sequence[float] | None]]:
    def values(side: Side) -> tuple[Sequence[float], Sequence[float] | None]:
        rows = [row for row in side.fidelity.rows if row.tokens]
        return [float(getattr(row, key)) for row in rows], [row.tokens for row in rows]

    return values


def _calibration_rows() -> list[_Row]:
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

    def scaled(key: str) -> Callable[[Side], tuple[Sequence[float], Sequence[float] | None]]:
        def values(side: Side) -> tuple[Sequence[float], Sequence[float] | None]:
            return [float(getattr(row, key)) for row in side.scaled], [
                row.tokens for row in side.scaled
            ]

        return values

    return [
        _Row("calibration error (ECE)", "ece", "", whole=ece),
        _Row("Brier score, 0 to 2", "brier", "", _by_record("brier")),
        _Row("fitted temperature", "temperature", "", whole=temperature),
        _Row("ECE, the other half", "ece_half", "", whole=of_half("plain_bins")),
        _Row("ECE, the other half, scaled", "ece_scaled", "", whole=of_half("bins")),
        _Row("Brier score, the other half, scaled", "brier_scaled", "", scaled("brier")),
        _Row("loss, the other half, scaled", "loss_scaled", "nats/token", scaled("loss")),
    ]


def _free_rows() -> list[_Row]:
    def mean(key: str) -> Callable[[Side], tuple[Sequence[float], Sequence[float] | None]]:
        def values(side: Side) -> tuple[Sequence[float], Sequence[float] | None]:
            rows = [row for row in getattr(side, key) if len(row)]
            return [float(row.mean()) for row in rows], [len(row) for row in rows]

        return values

    def excess(side: Side, less: Side | None, name: str) -> Metric:
        if not side.free or less is not None:
            return Metric(name, math.nan)
        return accumulated_error(side.free, side.forced, name=name)

    return [
        _Row("KL on the teacher's text", "kl_forced", "nats/token", mean("forced"), None, True),
        _Row("KL on its own text", "kl_free", "nats/token", mean("free"), None, True),
        _Row("excess accumulated error", "excess_error", "", whole=excess, of_teacher=True),
    ]


def _answer_rows(teacher: Sequence[Answered]) -> list[_Row]:
    texts = [normalize_text(one.text) for one in teacher]
    right = [_is_right(one) for one in teacher]

    def each(
        score: Callable[[int, Answered], float],
    ) -> Callable[[Side], tuple[Sequence[float], Sequence[float] | None]]:
        return lambda side: ([score(at, one) for at, one in enumerate(side.answers)], None)

    def distinct(n: int) -> Callable[[Side], tuple[Sequence[float], Sequence[float] | None]]:
        return each(lambda at, one: _or(distinct_share(one.ids, n), 1.0))

    def flips(at: int, one: Answered) -> float:
        return float(normalize_text(one.text) != texts[at])

    return [
        _Row("answer flips", "flips", "", each(flips), of_teacher=True),
        _Row(
            "right for the teacher, now wrong",
            "lost",
            "",
            each(lambda at, one: float(right[at] and not _is_right(one))),
            of_teacher=True,
        ),
        _Row(
            "wrong for the teacher, now right",
            "gained",
            "",
            each(lambda at, one: float(_is_right(one) and not right[at])),
            of_teacher=True,
        ),
        _Row("F1", "f1", "", each(lambda at, one: token_f1(one.text, one.reference))),
        _Row("exact match", "em", "", each(lambda at, one: exact_match(one.text, one.reference))),
        _Row("length", "length", "tokens", each(lambda at, one: float(len(one.ids)))),
        _Row("ended by itself", "ended", "", each(lambda at, one: float(one.has_ended))),
        _Row("distinct words (distinct-1)", "distinct_1", "", distinct(1)),
        _Row("distinct pairs (distinct-2)", "distinct_2", "", distinct(2)),
    ]


def _is_right(one: Answered) -> bool:
    return token_f1(one.text, one.reference) >= _RIGHT_F1


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _add_budget(report: Report, budgets: Mapping[str, Budget]) -> None:
    note = "counted, not sampled"
    rows = {
        "optimizer steps": ("steps", ""),
        "tokens read": ("tokens", ""),
        "tokens that bore loss": ("positions", ""),
        "parameters": ("parameters", ""),
        "weights on disk": ("bytes", "B"),
    }
    columns = [name for name in _COLUMNS if name in budgets]
    metrics, lines = [], []
    for label, (key, unit) in rows.items():
        names = []
        for name in columns:
            value = float(getattr(budgets[name], key))
            names.append(f"{_NAMES.get(name, name)}/{key}" if value else "")
            if value:
                metrics.append(Metric(names[-1], value, unit=unit, note=note))
        lines.append((label, unit, tuple(names)))
    report.section(
        "Budget and size",
        "Student and control had the same start, records, order, optimizer, schedule and seed; "
        "the teacher's own passes are not counted. Latency and peak memory change from run to "
        "run, so they stand outside the artifact, in timings.html beside this folder.",
        metrics=metrics,
        grid=Grid("Counts", tuple(_COLUMNS[name] for name in columns), tuple(lines)),
    )


def _add_left_out(report: Report, passed_over: Mapping[str, int]) -> None:
    if passed_over:
        said = ", ".join(f"{reason}: {count}" for reason, count in passed_over.items())
        report.section("Left out", f"Records that no model was asked to answer: {said}.")


def _say_summary(sides: Mapping[str, Side], seed: int) -> str:
    """Return in words whether teaching helped, and whether the teacher did."""
    final, before = sides[FINAL].fidelity, sides[INITIAL].fidelity
    rows = [row for row in final.rows if row.tokens]
    if not rows:
        return "No held-out record was measured: how near the student is remains unknown."
    said = (
        f"On {len(rows)} held-out records the student's divergence from its teacher went from "
        f"{before.mean('kl'):.3f} to {final.mean('kl'):.3f} nats a token."
    )
    if CONTROL not in sides:
        return (
            f"{said} There is no control (fidelity.control is false): how much of this came from "
            "the teacher, and how much from the records alone, is not known."
        )
    gap, surprise = (_gap(sides, key, seed) for key in ("kl", "loss"))
    ends = f"{gap.value:+.3f} nats a token, 95 % {gap.low:+.3f} to {gap.high:+.3f}"
    if math.isnan(gap.low):
        verdict = f"it is {gap.value:+.3f} nats a token beside the control; one record, no interval"
    elif gap.high < 0:
        verdict = f"it is nearer than the control, which learned from the records alone ({ends})"
    elif gap.low > 0:
        verdict = f"it is farther than the control, which learned from the records alone ({ends})"
    else:
        verdict = f"no difference from the control can be told ({ends})"
    return (
        f"{said} With the same budget {verdict}. On the records' own tokens its loss is "
        f"{surprise.value:+.3f} nats a token beside the control's (95 % {surprise.low:+.3f} to "
        f"{surprise.high:+.3f})."
    )


def _gap(sides: Mapping[str, Side], key: str, seed: int) -> Metric:
    """Return student less control of one value, over all tokens together."""
    ours, theirs = (
        [row for row in sides[name].fidelity.rows if row.tokens] for name in (FINAL, CONTROL)
    )
    return paired_difference(
        [getattr(row, key) for row in ours],
        [getattr(row, key) for row in theirs],
        weights=[row.tokens for row in ours],
        seed=seed,
    )
