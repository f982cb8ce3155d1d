"""Benchmark job: runs ``evaluation``, ``robustness`` or ``adversarial``; result file and report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.evaluate import Metric, Report, Table
from stillroom.evaluate.report import Section
from stillroom.forensics.benchmark.evaluation import (
    DetectorEvaluation,
    evaluate_folds,
    evaluate_scores,
    read_scores,
)
from stillroom.forensics.benchmark.manifest import find_manifest, read_items
from stillroom.jobs import Job, atomic_write
from stillroom.provenance import Artifact, make_parent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stillroom.forensics.benchmark.adversarial import AttackReport
    from stillroom.forensics.benchmark.robustness import RobustnessReport
    from stillroom.forensics.jobs.benchmark import BenchmarkRecipe, ScoreMeasurement

__all__ = ["RESULT", "ScoreResult", "measure_benchmark", "run_benchmark"]

RESULT = "result.json"
"""File of a measurement's figures; that of scores can be compared with another's."""


@dataclass(frozen=True)
class ScoreResult:
    """Evaluation of a table of scores, and the area on each held-out generator or source."""

    evaluation: DetectorEvaluation
    leave_out: str | None
    folds: Mapping[str, Metric]

    def lines(self) -> list[str]:
        """Format the figures as lines."""
        lines = self.evaluation.lines()
        for name, metric in self.folds.items():
            figure = f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}], n {metric.n}"
            lines.append(f"  auc with {self.leave_out} {name} left out: {figure}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        held = {name: metric.to_json() for name, metric in self.folds.items()}
        return {**self.evaluation.to_json(), "left_out": held}


def measure_benchmark(recipe: BenchmarkRecipe) -> ScoreResult | RobustnessReport | AttackReport:
    """Measure a detector.

    Raises:
        DataError: If rows, scores, files or the detector are unsuitable.
    """
    manifest, measurement = Path(recipe.manifest), recipe.measurement
    if measurement.type == "scores":
        return _measure_scores(recipe, measurement)
    if measurement.type == "robustness":
        from stillroom.forensics.benchmark.robustness import measure_robustness

        return measure_robustness(
            manifest,
            measurement.detector,
            treatments=measurement.treatments,
            split=recipe.split,
            seed=recipe.seed,
        )
    from stillroom.forensics.benchmark.adversarial import attack_manifest
    from stillroom.forensics.inference.trained_detector import TrainedDetector

    return attack_manifest(
        manifest,
        TrainedDetector.open(Path(measurement.detector)),
        attacks=measurement.attacks,
        strengths=measurement.strengths,
        split=recipe.split,
        seed=recipe.seed,
    )


def _measure_scores(recipe: BenchmarkRecipe, measurement: ScoreMeasurement) -> ScoreResult:
    items, path = read_items(Path(recipe.manifest)), Path(measurement.scores)
    scores = read_scores(path, column=measurement.column)
    evaluation = evaluate_scores(
        items,
        scores,
        detector=measurement.detector or path.stem,
        seed=recipe.seed,
        split=recipe.split,
        unit="clip" if measurement.clips else "frame",
        aggregation=measurement.clips or "mean",
        no_score=measurement.no_score,
    )
    leave_out = measurement.leave_out
    folds = (
        evaluate_folds(items, scores, leave_out, seed=recipe.seed, no_score=measurement.no_score)
        if leave_out
        else {}
    )
    return ScoreResult(evaluation, leave_out, folds)


def run_benchmark(recipe: BenchmarkRecipe, job: Job) -> Artifact:
    """Measure a detector, and write its figures and a report.

    Raises:
        DataError: If rows, scores, files or the detector are unsuitable.
    """
    measurement = recipe.measurement
    result = measure_benchmark(recipe)
    figures = result.to_json()
    with atomic_write(job.output / RESULT) as file:
        json.dump(figures, file, ensure_ascii=False, indent=1)
    rows = tuple((line.strip(),) for line in result.lines())
    report = Report(f"Benchmark: {measurement.type}", f"{recipe.manifest}, split {recipe.split!r}")
    if isinstance(result, ScoreResult):
        for metric in result.evaluation.metrics.values():
            report.add(metric, is_headline=metric.name == "auc")
    table = Table("One line a figure", ("figures",), rows)
    report.sections.append(Section("Figures", metrics=tuple(report.metrics.values()), table=table))
    if curves := [curve.chart() for curve in getattr(result, "curves", ())]:
        caption = (
            "Area under the curve over five strengths of each treatment, given to real and fake "
            "files alike; 0.5 is chance. Bars are 95 % intervals over recordings."
        )
        report.section("Treatments", caption, curves=curves)
    report.write(job.output)
    for line in result.lines():
        job.say(line)
    source = (
        {"scores": measurement.scores}
        if measurement.type == "scores"
        else {"detector": measurement.detector}
    )
    parents = {"benchmark": str(find_manifest(Path(recipe.manifest))), **source}
    return job.finish(
        "report",
        parents=[make_parent(role, Path(path), job.out) for role, path in parents.items()],
        details={"measurement": measurement.type, **report.to_json()},
    )
