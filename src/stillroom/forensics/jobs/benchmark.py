"""Measure a detector on a benchmark: its scores, its robustness, or attacks on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stillroom.errors import DataError
from stillroom.forensics.extras import require_packages
from stillroom.forensics.settings import (
    AttackSettings,
    EotJpegAttack,
    FgsmAttack,
    PgdAttack,
    SquareAttack,
)
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.provenance import Artifact
from stillroom.recipes import DISTINCT, Recipe, Reference, Settings

__all__ = [
    "JOB_KIND",
    "AttackMeasurement",
    "BenchmarkRecipe",
    "RobustnessMeasurement",
    "ScoreMeasurement",
    "TreatmentName",
    "estimate",
    "run",
]

TreatmentName = Literal[
    "jpeg",
    "webp",
    "resize",
    "blur",
    "noise",
    "color",
    "crop",
    "rotation",
    "screenshot",
    "social",
    "h264",
]
"""A treatment of ``stillroom.forensics.benchmark.robustness``."""

_SECONDS_SCORED = 0.02  # per image
_STRENGTHS, _TREATMENTS = 5, 11


class ScoreMeasurement(Settings):
    """Evaluate a table of scores, with intervals over recordings."""

    type: Literal["scores"] = Field(description="evaluate a table of scores of any detector")
    scores: Reference = Field(description="CSV or JSON Lines with an id and a score per row")
    column: str = Field(default="score", min_length=1, description="column of the scores")
    detector: str = Field(
        default="", max_length=200, description="name of the detector; '' for the table's"
    )
    clips: Literal["mean", "max", "top"] | None = Field(
        default=None,
        description="score whole clips by this aggregation of their frames; null scores files",
    )
    no_score: Literal["refuse", "drop", "half"] = Field(
        default="refuse", description="treatment of items without a score: error, left out, or 0.5"
    )
    leave_out: Literal["generator", "source"] | None = Field(
        default=None,
        description="also report each held-out generator or source, for a detector trained "
        "without it",
    )


class RobustnessMeasurement(Settings):
    """Score images under treatments of five strengths."""

    type: Literal["robustness"] = Field(description="score images under treatments")
    detector: Reference = Field(description="folder of a trained image detector")
    treatments: Annotated[list[TreatmentName], DISTINCT] = Field(
        default_factory=list, description="treatments of the suite; [] for all"
    )


def _list_attacks() -> list[AttackSettings]:
    return [FgsmAttack(), PgdAttack(), SquareAttack(), EotJpegAttack()]


class AttackMeasurement(Settings):
    """Change forgeries until an image detector accepts them."""

    type: Literal["attacks"] = Field(description="attack an image detector")
    detector: Reference = Field(description="folder of a trained image detector")
    attacks: Annotated[list[Annotated[AttackSettings, Field(discriminator="name")]], DISTINCT] = (
        Field(default_factory=_list_attacks, min_length=1, description="attacks to run")
    )
    strengths: Annotated[list[Annotated[int, Field(ge=1, le=64)]], DISTINCT] = Field(
        default_factory=lambda: [1, 2, 4],
        min_length=1,
        description="maximum changes of a pixel value (0 to 255)",
    )


class BenchmarkRecipe(Recipe):
    """Measure a detector on a benchmark under a protocol with a digest."""

    kind: Literal["forensics.benchmark"] = Field(
        default="forensics.benchmark", description="measure a detector on a benchmark"
    )
    manifest: Reference = Field(description="benchmark manifest or its folder")
    split: str = Field(default="test", description="split to test; '' for all")
    measurement: ScoreMeasurement | RobustnessMeasurement | AttackMeasurement = Field(
        discriminator="type", description="what is measured"
    )


def run(recipe: BenchmarkRecipe, job: Job) -> Artifact:
    """Measure, and write the report; raises as ``run_benchmark``."""
    if recipe.measurement.type != "scores":
        require_packages("av", "cv2", "PIL")
    from stillroom.forensics.benchmark.report import run_benchmark

    return run_benchmark(recipe, job)


def estimate(recipe: BenchmarkRecipe) -> Estimate:
    """Estimate the resources from the rows of the manifest, where it exists already."""
    from stillroom.forensics.benchmark.manifest import read_items

    measurement = recipe.measurement
    try:
        items = read_items(Path(recipe.manifest))
    except DataError:  # of an earlier step, or reported when the job starts
        items = []
    rows = sum(not recipe.split or item.split == recipe.split for item in items)
    if items and not rows:
        raise DataError(
            f"the split {recipe.split!r} has no rows",
            code="forensics.stress",
            where=recipe.manifest,
            expected=f"one of: {', '.join(sorted({item.split for item in items}))}",
            next="name another split, or '' for all",
        )
    times = 0
    if measurement.type == "robustness":
        times = 1 + _STRENGTHS * (len(measurement.treatments) or _TREATMENTS)
    elif measurement.type == "attacks":
        queries = [getattr(a, "steps", getattr(a, "queries", 1)) for a in measurement.attacks]
        times = 1 + len(measurement.strengths) * sum(queries)
    return Estimate(
        memory_bytes=700_000_000 if times else 200_000_000,
        disk_bytes=5_000_000,
        seconds=rows * times * _SECONDS_SCORED + len(items) / 1000,
        memory_knob="measure one split",
        disk_knob="measure one split",
        basis=f"{rows} rows, each scored {times} times" if times else f"{rows} scores",
    )


JOB_KIND = JobKind(recipe=BenchmarkRecipe, run=run, estimate=estimate)
