"""Whether a judge agrees with people, and what its verdicts are worth once that is known.

Labels of people on some of the verdicts give: accuracy and Cohen's kappa with intervals; a
threshold or a Platt curve that makes the judge's probabilities mean what they say; and the mean
over all answers, corrected by how far the judge is off where people have looked.

Sources: Cohen 1960, "A Coefficient of Agreement for Nominal Scales"; Platt 1999, "Probabilistic
Outputs for Support Vector Machines"; Angelopoulos et al. 2023, arXiv:2301.09633
(prediction-powered inference, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate.metrics import Floats, Metric, bootstrap, bootstrap_counts

__all__ = ["PlattScale", "corrected_mean", "judge_agreement"]

_NORMAL = 1.959963984540054
_STEPS = 100
_EDGE = 1e-6


def judge_agreement(
    said: Sequence[bool], labels: Sequence[bool], name: str = "judge", *, seed: int = 0
) -> list[Metric]:
    """Return accuracy and Cohen's kappa of a judge against people, with intervals over answers.

    Kappa is agreement beyond what both would reach by chance: 1 is perfect, 0 chance; it is not a
    number where one of them always says the same and so chance is certain.

    Args:
        said: The judge's verdicts.
        labels: People's, of the same answers in the same order.
        name: What the metrics' names begin with.
        seed: Of the intervals.

    Raises:
        DataError: If the lists differ in length.
    """
    ours, theirs = _paired(said, labels)
    same = (ours == theirs).astype(np.float64)

    def kappa(counts: Floats) -> Floats:
        total = counts.sum(1)
        observed = (counts @ same) / total
        first, second = (counts @ ours) / total, (counts @ theirs) / total
        chance = first * second + (1 - first) * (1 - second)
        return np.asarray((observed - chance) / (1 - chance))

    return [
        bootstrap(same, seed=seed, name=f"{name}/accuracy"),
        bootstrap_counts(kappa, len(same), seed=seed, name=f"{name}/kappa"),
    ]


@dataclass(frozen=True, slots=True)
class PlattScale:
    """A logistic curve over a judge's log-odds: P(a person says yes) = 1/(1+exp(-(a*x+b)))."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, chances: Sequence[float], labels: Sequence[bool]) -> PlattScale:
        """Fit on verdicts that people have labeled, by Newton's method.

        Targets are Platt's smoothed ones, (n+1)/(n+2) and 1/(n+2), so that a few labels that the
        judge separates perfectly do not give an infinite slope.

        Args:
            chances: The judge's probabilities of a yes.
            labels: People's verdicts on the same.

        Raises:
            DataError: If the lists differ in length, or one of the two verdicts never comes.
        """
        _, truth = _paired([chance > 0.5 for chance in chances], labels)
        positives = int(truth.sum())
        if not 0 < positives < len(truth):
            raise DataError(
                f"{positives} of {len(truth)} labels are yes",
                code="metric.one-label",
                expected="both verdicts among the labels",
                next="label some answers of the other kind",
            )
        targets = np.where(
            truth > 0, (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2)
        )
        odds = np.array([_odds(chance) for chance in chances])
        design = np.stack([odds, np.ones_like(odds)], 1)
        weights = np.array([1.0, 0.0])
        for _ in range(_STEPS):
            fitted = 1 / (1 + np.exp(-(design @ weights)))
            gradient = design.T @ (fitted - targets)
            curvature = (design * (fitted * (1 - fitted))[:, None]).T @ design
            step = np.linalg.solve(curvature + 1e-9 * np.eye(2), gradient)
            weights = weights - np.clip(step, -2, 2)
            if float(np.abs(step).max()) < 1e-10:
                break
        return cls(float(weights[0]), float(weights[1]))

    @property
    def threshold(self) -> float:
        """The judge's probability above which a person more likely says yes than no.

        Not a number where the judge's word says nothing, or the opposite.
        """
        if self.slope <= 0:
            return math.nan
        return 1 / (1 + math.exp(min(self.intercept / self.slope, 700.0)))

    def apply(self, chance: float) -> float:
        """Return how likely a person says yes where the judge says ``chance``."""
        power = -(self.slope * _odds(chance) + self.intercept)
        return 1 / (1 + math.exp(min(power, 700.0)))


def corrected_mean(
    judged: Sequence[float],
    labeled_judged: Sequence[float],
    labels: Sequence[bool],
    name: str = "corrected",
) -> Metric:
    """Return the share that people would call right, from many verdicts and a few labels.

    The judge's mean over all answers, less its mean error where people have looked; the interval
    is normal and holds whatever the judge is worth, wider the worse it is.

    Source: Angelopoulos et al. 2023, arXiv:2301.09633, algorithm 1.

    Args:
        judged: The judge's values of the answers that nobody labeled.
        labeled_judged: Its values of the labeled ones.
        labels: People's verdicts on those.
        name: The metric's name.

    Raises:
        DataError: If there are fewer than two of either, or the labels do not fit.
    """
    truth = np.asarray([float(label) for label in labels])
    theirs, ours = np.asarray(labeled_judged, dtype=float), np.asarray(judged, dtype=float)
    if len(truth) != len(theirs) or len(truth) < 2 or len(ours) < 2:
        raise DataError(
            f"{len(ours)} verdicts, {len(theirs)} labeled verdicts and {len(truth)} labels",
            code="metric.unpaired",
            expected="two or more of each, one label a labeled verdict",
            next="label more answers",
        )
    error = theirs - truth
    value = float(ours.mean() - error.mean())
    spread = _NORMAL * math.sqrt(
        float(ours.var(ddof=1)) / len(ours) + float(error.var(ddof=1)) / len(error)
    )
    note = f"{len(ours)} verdicts corrected by {len(truth)} labels"
    return Metric(name, value, value - spread, value + spread, len(ours) + len(truth), note=note)


def _paired(said: Sequence[bool], labels: Sequence[bool]) -> tuple[Floats, Floats]:
    if len(said) != len(labels):
        raise DataError(
            f"{len(said)} verdicts and {len(labels)} labels cannot be paired",
            code="metric.unpaired",
            expected="one label a verdict, in the same order",
            next="compare what people and the judge said of the same answers",
        )
    return np.asarray(said, dtype=np.float64), np.asarray(labels, dtype=np.float64)


def _odds(chance: float) -> float:
    bounded = min(max(chance, _EDGE), 1 - _EDGE)
    return math.log(bounded / (1 - bounded))
