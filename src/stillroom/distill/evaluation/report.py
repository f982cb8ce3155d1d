"""Fidelity report: metrics of every model with intervals, side by side, and a summary.

Columns are the teacher, the initial student, the baseline and the student; the last is
student minus baseline on the same records.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.distill.evaluation.metrics import BASELINE, TEACHER, ModelFidelity, RecordMetrics
from stillroom.distill.evaluation.tables import (
    CORRECT_F1,
    ReportRow,
    TeacherDistanceValues,
    make_answer_rows,
    make_calibration_rows,
    make_depth_curves,
    make_distance_rows,
    make_distribution_rows,
    make_free_generation_rows,
    make_reliability_curves,
    make_standalone_rows,
    make_training_curves,
)
from stillroom.evaluate import Metric, Plot, Report, bootstrap, paired_difference, warn_small_sample
from stillroom.evaluate.charts import LineChart
from stillroom.evaluate.report import ComparisonTable, render_page
from stillroom.jobs import atomic_write

__all__ = [
    "FINAL",
    "INITIAL",
    "TeacherDistance",
    "TrainingBudget",
    "build_report",
    "write_fidelity_report",
]

INITIAL, FINAL, _DIFFERENCE = "initial", "final", "student_minus_baseline"
_COLUMNS = {
    TEACHER: "teacher",
    INITIAL: "start",
    BASELINE: "baseline",
    FINAL: "student",
    _DIFFERENCE: "student − baseline",
}
_NAMES = {INITIAL: "start", FINAL: "student"}  # names in metrics, if different


@dataclass(frozen=True, slots=True)
class TrainingBudget:
    """Training steps, tokens and size of a model: counted, not sampled."""

    steps: int
    tokens: int
    positions: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class TeacherDistance:
    """Distances of each model to a teacher without full distributions.

    Args:
        teacher: Name of the teacher.
        found: Metrics by model.
        note: Sentence that describes the metrics.
    """

    teacher: str
    found: Mapping[str, RecordMetrics[Any]]
    note: str = ""

    @property
    def figures(self) -> type[RecordMetrics[Any]]:
        """Class of the metrics."""
        return type(self.found[FINAL])


def build_report(
    sides: Mapping[str, ModelFidelity],
    budgets: Mapping[str, TrainingBudget],
    *,
    title: str,
    seed: int,
    passed_over: Mapping[str, int],
    near: Sequence[TeacherDistance] | None = None,
    losses: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> Report:
    """Build the fidelity report of a job.

    Args:
        sides: Measurements of ``initial``, ``final``, ``baseline`` if there is a baseline, and
            ``teacher`` if it ran in this process.
        budgets: Training budgets of ``final``, ``teacher`` and ``baseline``.
        title: Title of the page.
        seed: Seed of the bootstrap.
        passed_over: Numbers of unanswered records by reason.
        near: Distances to each teacher behind an endpoint or with another tokenizer; None if the
            teacher's distributions are part of ``sides``.
        losses: Training losses of student and baseline by step.
    """
    report = Report(title, _summarize(sides, near, seed))
    if not sides[FINAL].fidelity.rows:
        return report
    builder = _ReportBuilder(report, sides, seed)
    if near is None:
        builder.section(
            "Beliefs",
            "All models read the same held-out records; the assistant's tokens count. Means are "
            "over all tokens together, intervals over records.",
            make_distribution_rows(),
            plot="kl",
            curves=make_depth_curves(sides, _list_names(INITIAL, BASELINE, FINAL)),
        )
    else:
        _add_teacher_distances(report, near, seed)
        builder.section(
            "By themselves",
            "What each model says of the held-out records' own tokens, the assistant's alone, as "
            "its own tokenizer cuts them.",
            make_standalone_rows(),
        )
    builder.section(
        "Calibration",
        "Whether a probability that is said comes true, for the token that stands in the record. "
        "The temperature is fitted on every second record and applied to the others: it is what "
        "one parameter can do, so compare with the lines after it.",
        make_calibration_rows(),
        curves=make_reliability_curves(sides, _list_names(TEACHER, BASELINE, FINAL), FINAL),
    )
    _add_generated_text(builder, sides)
    _add_budget(report, budgets, losses or {})
    if passed_over:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in passed_over.items())
        report.section("Left out", f"Records that no model was asked to answer: {reasons}.")
    return report


def _list_names(*sides: str) -> dict[str, str]:
    """Return the display names of some models, in order."""
    return {name: _COLUMNS[name] for name in sides}


def _add_teacher_distances(report: Report, near: Sequence[TeacherDistance], seed: int) -> None:
    """Add a section per teacher; with several teachers, metric names are prefixed."""
    for distance in near:
        if not distance.found[FINAL].rows:
            continue
        values = {name: TeacherDistanceValues(figures) for name, figures in distance.found.items()}
        teacher_values = {TEACHER: TeacherDistanceValues(distance.found[FINAL], is_teacher=True)}
        prefix = f"{distance.teacher}/" if len(near) > 1 else ""
        builder = _ReportBuilder(report, {**teacher_values, **values}, seed, prefix)
        builder.section(
            f"Nearness to {distance.teacher}",
            f"The teacher was asked about the held-out records once. {distance.note} Means are "
            "over all that is counted together, intervals over records.",
            make_distance_rows(distance.figures),
            plot=distance.figures.nearness,
        )


def _add_generated_text(builder: _ReportBuilder, sides: Mapping[str, ModelFidelity]) -> None:
    """Add sections on generated text, if there is any."""
    teacher = sides[TEACHER].answers if TEACHER in sides else ()
    if any(side.free for side in sides.values()):
        builder.section(
            "On their own text",
            "Each model samples from its whole distribution after the same prompts, and the "
            "teacher says at every depth how far off it is. The excess is how much more error "
            "accumulates on a model's own text than on the teacher's.",
            make_free_generation_rows(),
        )
    if sides[FINAL].answers:
        flips = "An answer flips where it differs from the teacher's after normalization; it"
        builder.section(
            "Answers",
            f"The likeliest answer of each model. {flips if teacher else 'No teacher answered. It'}"
            f" is right where SQuAD's F1 against the record's reference is at least {CORRECT_F1}.",
            make_answer_rows(teacher),
        )


def write_fidelity_report(folder: Path, report: Report, values: Mapping[str, Any]) -> None:
    """Write fidelity.json (``values`` and the report) and fidelity.html to ``folder``."""
    document = {**values, "report": report.to_json()}
    with atomic_write(folder / "fidelity.json") as file:
        json.dump(document, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    with atomic_write(folder / "fidelity.html") as file:
        file.write(render_page(report.to_json()))


class _ReportBuilder:
    """Builder of sections with a table of one column per model."""

    def __init__(
        self, report: Report, sides: Mapping[str, Any], seed: int, prefix: str = ""
    ) -> None:
        self.report, self.sides, self.seed, self.prefix = report, sides, seed, prefix
        self.columns = [name for name in _COLUMNS if name in sides]
        if BASELINE in sides:
            self.columns.append(_DIFFERENCE)

    def section(
        self,
        title: str,
        text: str,
        rows: Sequence[ReportRow],
        *,
        plot: str = "",
        curves: Sequence[LineChart] = (),
    ) -> None:
        cells = {(row.key, name): self._cell(row, name) for row in rows for name in self.columns}
        metrics = {key: metric for key, metric in cells.items() if metric is not None}
        columns = [name for name in self.columns if any(name == side for _, side in metrics)]
        grid = ComparisonTable(
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
        label = next((row.label for row in rows if row.key == plot), "")
        plotted = [
            (name, metrics[plot, name])
            for name in (INITIAL, BASELINE, FINAL)
            if plot and (plot, name) in metrics
        ]
        self.report.section(
            title,
            text,
            metrics=list(metrics.values()),
            grid=grid,
            plot=Plot.of(
                f"Divergence from the teacher, {label}: less is nearer",
                [metric for _, metric in plotted],
                labels=[_COLUMNS[name] for name, _ in plotted],
            )
            if plotted
            else None,
            curves=curves,
        )
        for name in (FINAL, _DIFFERENCE):
            if plot and (plot, name) in metrics:
                self.report.add(metrics[plot, name], is_headline=True)

    def _cell(self, row: ReportRow, name: str) -> Metric | None:
        if name == TEACHER and row.of_teacher:
            return None
        label = f"{_NAMES.get(name, name)}/{self.prefix}{row.key}"
        model = self.sides[FINAL if name == _DIFFERENCE else name]
        baseline = self.sides[BASELINE] if name == _DIFFERENCE else None
        if row.whole is not None:
            metric = row.whole(model, baseline, label)
            return None if math.isnan(metric.value) else metric
        return self._mean(row, model, baseline, label)

    def _mean(self, row: ReportRow, model: Any, baseline: Any | None, label: str) -> Metric | None:
        if row.values is None:
            return None
        values, weights = row.values(model)
        if not values:
            return None
        if baseline is None:
            return bootstrap(values, weights=weights, seed=self.seed, name=label, unit=row.unit)
        baseline_values, _ = row.values(baseline)
        pairs = [
            (index, a, b)
            for index, (a, b) in enumerate(zip(values, baseline_values, strict=True))
            if math.isfinite(a) and math.isfinite(b)
        ]
        return paired_difference(
            [a for _, a, _ in pairs],
            [b for _, _, b in pairs],
            weights=None if weights is None else [weights[index] for index, _, _ in pairs],
            seed=self.seed,
            name=label,
            unit=row.unit,
        )


def _add_budget(
    report: Report,
    budgets: Mapping[str, TrainingBudget],
    losses: Mapping[str, Sequence[tuple[int, float]]],
) -> None:
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
        "Student and baseline had the same start, records, order, optimizer, schedule and seed; "
        "the teacher's own passes are not counted. Latency and peak memory change from run to "
        "run, so they stand outside the artifact, in timings.html beside this folder.",
        metrics=metrics,
        grid=ComparisonTable("Counts", tuple(_COLUMNS[name] for name in columns), tuple(lines)),
        curves=make_training_curves(losses),
    )


def _summarize(
    sides: Mapping[str, ModelFidelity], near: Sequence[TeacherDistance] | None, seed: int
) -> str:
    """Return a text on whether training and the teacher helped."""
    if not any(row.tokens for row in sides[FINAL].fidelity.rows):
        return "No held-out record was measured: how near the student is remains unknown."
    local_teacher = [
        TeacherDistance("its teacher", {name: side.fidelity for name, side in sides.items()})
    ]
    lines = [
        _summarize_distance(distance, seed)
        for distance in (local_teacher if near is None else near)
    ]
    summary = " ".join(filter(None, lines)) or (
        "No teacher told how likely it finds the held-out records: how near the student is "
        "remains unknown."
    )
    if BASELINE not in sides:
        return (
            f"{summary} There is no baseline (fidelity.baseline is false): how much of this came "
            "from the teacher, and how much from the records alone, is not known."
        )
    surprise = _compute_difference(
        {name: side.fidelity for name, side in sides.items()}, "loss", seed
    )
    interval = (
        "one record, no interval"
        if math.isnan(surprise.low)
        else f"95 % {surprise.low:+.3f} to {surprise.high:+.3f}"
    )
    return (
        f"{summary} On the records' own tokens its loss is "
        f"{surprise.value:+.3f} nats a token beside the baseline's ({interval})."
    )


def _summarize_distance(near: TeacherDistance, seed: int) -> str:
    """Return a text on the distances of student and baseline to one teacher."""
    kind, final = near.figures, near.found[FINAL]
    key = kind.nearness
    unit = kind.measures[key][0].replace("/", " a ")
    counted = [row for row in final.rows if getattr(row, kind.measures[key][1])]
    if not counted:
        return ""
    summary = (
        f"On {len(counted)} held-out records the student's divergence from {near.teacher} went "
        f"from {near.found[INITIAL].mean(key):.3g} to {final.mean(key):.3g} {unit}."
    )
    if BASELINE not in near.found:
        return summary
    gap = _compute_difference(near.found, key, seed)
    ends = f"{gap.value:+.3f} {unit}, 95 % {gap.low:+.3f} to {gap.high:+.3f}"
    warning = warn_small_sample(gap.n, "held-out record").rstrip(".")
    if math.isnan(gap.low):
        verdict = f"it is {gap.value:+.3f} {unit} beside the baseline; one record, no interval"
    elif gap.is_few:
        verdict = f"nothing is concluded beside the baseline ({ends}): {warning}"
    elif gap.side() < 0:
        verdict = f"it is nearer than the baseline, trained on the records alone ({ends})"
    elif gap.side() > 0:
        verdict = f"it is farther than the baseline, trained on the records alone ({ends})"
    else:
        verdict = f"no difference from the baseline is significant ({ends})"
    return f"{summary} With the same budget {verdict}."


def _compute_difference(metrics: Mapping[str, RecordMetrics[Any]], key: str, seed: int) -> Metric:
    """Return student minus baseline for one metric, weighted over all records."""
    by = metrics[FINAL].measures[key][1]
    student_rows, baseline_rows = (
        [row for row in metrics[name].rows if getattr(row, by)] for name in (FINAL, BASELINE)
    )
    return paired_difference(
        [getattr(row, key) for row in student_rows],
        [getattr(row, key) for row in baseline_rows],
        weights=[getattr(row, by) for row in student_rows],
        seed=seed,
    )
