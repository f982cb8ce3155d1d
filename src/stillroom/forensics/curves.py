"""Curves of robustness: the area under each treatment, and how many verdicts it turns over.

The threshold is the one that was chosen on files as they are, of a validation set; none of a
treatment's own. A flip is a file whose verdict changes though only its treatment did.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from stillroom.evaluate import Metric
from stillroom.forensics.intervals import measure_scores
from stillroom.forensics.stress import CLEAN, Stressed

__all__ = ["Curve", "Point", "draw_curves", "trace_curves"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 250, 150, 34, 22


@dataclass(frozen=True, slots=True)
class Point:
    """One strength: the area with its interval, and the share of real and fake verdicts turned."""

    strength: int
    auc: Metric
    real_flips: float
    fake_flips: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One treatment from strength 0, the files as they are."""

    treatment: str
    points: tuple[Point, ...]

    @property
    def mean_auc(self) -> float:
        """Mean of the areas at strengths above 0."""
        values = [point.auc.value for point in self.points if point.strength]
        return sum(values) / len(values) if values else math.nan

    def line(self) -> str:
        """Return the curve as one line."""
        said = ", ".join(
            f"{point.auc.value:.3f} [{point.auc.low:.3f}, {point.auc.high:.3f}]"
            for point in self.points
        )
        worst = self.points[-1]
        return (
            f"{self.treatment}: auc {said}; mean {self.mean_auc:.3f}; verdicts turned at the "
            f"strongest: {worst.real_flips:.0%} of real, {worst.fake_flips:.0%} of fake"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "treatment": self.treatment,
            "mean_auc": self.mean_auc,
            "points": [
                {
                    "strength": point.strength,
                    "auc": point.auc.to_json(),
                    "real_flips": point.real_flips,
                    "fake_flips": point.fake_flips,
                }
                for point in self.points
            ],
        }


def trace_curves(
    rows: Iterable[Stressed], threshold: float, *, resamples: int = 1000, seed: int = 0
) -> list[Curve]:
    """Return a curve for every treatment.

    Args:
        rows: As ``stress_items`` yields them.
        threshold: Scores from here on count as fake; chosen on other files.
        resamples: Draws of groups for intervals.
        seed: Of the draws.
    """
    cells: dict[tuple[str, int], list[Stressed]] = defaultdict(list)
    for row in rows:
        cells[row.treatment, row.strength].append(row)
    clean = cells.get((CLEAN, 0), [])
    before = {row.id: row.score >= threshold for row in clean}
    start = _point(0, clean, before, threshold, resamples, seed)
    names = dict.fromkeys(name for name, _ in cells if name != CLEAN)
    return [
        Curve(
            name,
            (
                start,
                *(
                    _point(strength, cells[name, strength], before, threshold, resamples, seed)
                    for strength in sorted(s for other, s in cells if other == name)
                ),
            ),
        )
        for name in names
    ]


def _point(
    strength: int,
    rows: Sequence[Stressed],
    before: dict[str, bool],
    threshold: float,
    resamples: int,
    seed: int,
) -> Point:
    metrics = measure_scores(
        [row.label for row in rows],
        [row.score for row in rows],
        [row.group for row in rows],
        resamples=resamples,
        seed=seed,
    )
    flips = []
    for label in (0, 1):
        some = [row for row in rows if row.label == label]
        turned = sum((row.score >= threshold) != before[row.id] for row in some)
        flips.append(turned / len(some) if some else math.nan)
    return Point(strength, metrics["auc"], *flips)


def draw_curves(curves: Sequence[Curve]) -> str:
    """Return small plots as inline SVG, one a treatment: the area with its band, over strengths."""
    return "\n".join(_draw(curve) for curve in curves)


def _draw(curve: Curve) -> str:
    last = max(curve.points[-1].strength, 1)

    def x(strength: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * strength / last

    def y(value: float) -> float:
        shown = min(max(value, 0.3), 1.0)
        return 8 + (_HEIGHT - _BOTTOM - 8) * (1 - (shown - 0.3) / 0.7)

    points = curve.points
    upper = [f"{x(p.strength):.1f},{y(p.auc.high):.1f}" for p in points if p.auc.high == p.auc.high]
    lower = [f"{x(p.strength):.1f},{y(p.auc.low):.1f}" for p in points if p.auc.low == p.auc.low]
    line = " ".join(f"{x(p.strength):.1f},{y(p.auc.value):.1f}" for p in points)
    dots = "".join(
        f'<circle class="dot" cx="{x(p.strength):.1f}" cy="{y(p.auc.value):.1f}" r="3"/>'
        for p in points
    )
    marks = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 5}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
        for v in (0.5, 0.75, 1.0)
    )
    feet = "".join(
        f'<text class="tick" x="{x(p.strength):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{p.strength}</text>"
        for p in points
    )
    name = escape(curve.treatment)
    return (
        f'<figure><figcaption>{name}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" aria-label="{escape(curve.line())}">{marks}'
        f'<polygon class="band" points="{" ".join(upper + lower[::-1])}"/>'
        f'<polyline class="line" points="{line}"/>{dots}{feet}</svg></figure>'
    )
