"""Inter-rater agreement (Cohen's kappa, Krippendorff's alpha), and calibration of LLM judges.

From human labels of some of the verdicts: accuracy and Cohen's kappa with intervals; a threshold or
a Platt curve that calibrates the judge's probabilities; and the mean over all answers, corrected by
the judge's error on the labeled ones. Missing ratings are None and are left out, not imputed.

Sources: Cohen 1960, "A Coefficient of Agreement for Nominal Scales"; Platt 1999, "Probabilistic
Outputs for Support Vector Machines"; Angelopoulos et al. 2023, arXiv:2301.09633
(prediction-powered inference, algorithm 1).

Sources: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"; Cohen 1968, "Weighted
kappa"; Barlow et al. 1972 (pool adjacent violators, isotonic regression); Zadrozny and Elkan 2002
(isotonic calibration).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate.metrics.bootstrap import Floats, Metric, bootstrap, bootstrap_statistic
from stillroom.evaluate.metrics.calibration import fit_logistic_weights

__all__ = [
    "IsotonicScaler",
    "PlattScaler",
    "krippendorff_alpha",
    "measure_judge_agreement",
    "prediction_powered_mean",
]


_Z_95 = 1.959963984540054
_CLIP = 1e-6


def measure_judge_agreement(
    verdicts: Sequence[bool], labels: Sequence[bool], *, seed: int = 0
) -> list[Metric]:
    """Return accuracy and Cohen's kappa of a judge against people, with intervals over answers.

    Kappa is agreement beyond chance: 1 is perfect, 0 chance; NaN where one of them has only one
    verdict, so that chance agreement is certain.

    Raises:
        DataError: If the lists differ in length.
    """
    judge_values, human_values = _pair_labels(verdicts, labels)
    same = (judge_values == human_values).astype(np.float64)

    def kappa(counts: Floats) -> Floats:
        total = counts.sum(1)
        observed = (counts @ same) / total
        first, second = (counts @ judge_values) / total, (counts @ human_values) / total
        chance = first * second + (1 - first) * (1 - second)
        return np.asarray((observed - chance) / (1 - chance))

    return [
        bootstrap(same, seed=seed, name="judge/accuracy"),
        bootstrap_statistic(kappa, len(same), seed=seed, name="judge/kappa"),
    ]


@dataclass(frozen=True, slots=True)
class PlattScaler:
    """Logistic curve over a judge's log-odds: P(human yes) = 1 / (1 + exp(-(a * x + b)))."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, probabilities: Sequence[float], labels: Sequence[bool]) -> PlattScaler:
        """Fit on verdicts with human labels.

        Targets are Platt's smoothed ones, (n+1)/(n+2) and 1/(n+2), so that a few perfectly
        separated labels do not give an infinite slope.

        Raises:
            DataError: If the lists differ in length, or one of the two labels does not occur.
        """
        _, truth = _pair_labels([chance > 0.5 for chance in probabilities], labels)
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
        odds = np.array([_log_odds(chance) for chance in probabilities])
        design = np.stack([odds, np.ones_like(odds)], 1)
        weights = fit_logistic_weights(design, targets, ridge=1e-9)
        return cls(float(weights[0]), float(weights[1]))

    @property
    def threshold(self) -> float:
        """The judge's probability above which a human yes is more likely than a no.

        NaN where the judge is uninformative or reversed.
        """
        if self.slope <= 0:
            return math.nan
        return 1 / (1 + math.exp(min(self.intercept / self.slope, 700.0)))

    def apply(self, probability: float) -> float:
        """Return the probability of a human yes given the judge's."""
        power = -(self.slope * _log_odds(probability) + self.intercept)
        return 1 / (1 + math.exp(min(power, 700.0)))


def prediction_powered_mean(
    judged: Sequence[float],
    labeled_judged: Sequence[float],
    labels: Sequence[bool],
    name: str = "corrected",
) -> Metric:
    """Estimate the share that people would call right from many verdicts and a few labels.

    The judge's mean over all answers minus its mean error on labeled ones; the interval is normal
    and valid for any judge, wider for a worse one.

    Source: Angelopoulos et al. 2023, arXiv:2301.09633, algorithm 1.

    Raises:
        DataError: If there are fewer than two of either, or the labels do not fit.
    """
    truth = np.asarray([float(label) for label in labels])
    labeled, unlabeled = np.asarray(labeled_judged, dtype=float), np.asarray(judged, dtype=float)
    if len(truth) != len(labeled) or len(truth) < 2 or len(unlabeled) < 2:
        raise DataError(
            f"{len(unlabeled)} verdicts, {len(labeled)} labeled verdicts and {len(truth)} labels",
            code="metric.unpaired",
            expected="two or more of each, one label a labeled verdict",
            next="label more answers",
        )
    error = labeled - truth
    value = float(unlabeled.mean() - error.mean())
    spread = _Z_95 * math.sqrt(
        float(unlabeled.var(ddof=1)) / len(unlabeled) + float(error.var(ddof=1)) / len(error)
    )
    note = f"{len(unlabeled)} verdicts corrected by {len(truth)} labels"
    return Metric(
        name, value, value - spread, value + spread, len(unlabeled) + len(truth), note=note
    )


def _pair_labels(verdicts: Sequence[bool], labels: Sequence[bool]) -> tuple[Floats, Floats]:
    if len(verdicts) != len(labels):
        raise DataError(
            f"{len(verdicts)} verdicts and {len(labels)} labels cannot be paired",
            code="metric.unpaired",
            expected="one label a verdict, in the same order",
            next="compare labels and verdicts of the same answers",
        )
    return np.asarray(verdicts, dtype=np.float64), np.asarray(labels, dtype=np.float64)


def _log_odds(probability: float) -> float:
    bounded = min(max(probability, _CLIP), 1 - _CLIP)
    return math.log(bounded / (1 - bounded))


def krippendorff_alpha(ratings: Sequence[Sequence[float | None]]) -> float:
    """Return Krippendorff's alpha: 1 is perfect agreement, 0 chance level, below 0 worse.

    Ratings are on an interval scale: disagreement is the squared difference.

    Args:
        ratings: One row per unit, one column per rater; None for a missing rating. Units with fewer
            than two ratings do not count.

    Returns:
        NaN where no two ratings can be paired, or all of them are equal.
    """
    units = [[value for value in row if value is not None] for row in ratings]
    units = [row for row in units if len(row) > 1]
    values = sorted({value for row in units for value in row})
    if len(values) < 2:
        return math.nan
    position = {value: index for index, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for row in units:
        counts = np.bincount([position[value] for value in row], minlength=len(values)).astype(
            float
        )
        pairs = np.outer(counts, counts) - np.diag(counts)
        coincidences += pairs / (len(row) - 1)
    totals = coincidences.sum(1)
    distance = np.subtract.outer(values, values).astype(float) ** 2
    expected = float(np.outer(totals, totals).ravel() @ distance.ravel())
    observed = float(coincidences.ravel() @ distance.ravel())
    return 1 - (totals.sum() - 1) * observed / expected if expected else math.nan


@dataclass(frozen=True, slots=True)
class IsotonicScaler:
    """Monotone calibration from a rater's scores to human ones, linear between its knots."""

    knots: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def fit(cls, scores: Sequence[float], labels: Sequence[float]) -> IsotonicScaler:
        """Fit by pooling adjacent violators: least squares over all non-decreasing curves.

        Raises:
            DataError: If the lists differ in length, or hold fewer than two units.
        """
        if len(scores) != len(labels) or len(scores) < 2:
            raise DataError(
                f"{len(scores)} scores and {len(labels)} labels are too few for a curve",
                code="metric.unpaired",
                expected="two or more of each, one label a score",
                next="label more of the judged units",
            )
        pooled: dict[float, list[float]] = {}
        for score, label in zip(scores, labels, strict=True):
            pooled.setdefault(float(score), []).append(float(label))
        blocks: list[list[float]] = []  # mean, weight, first score, last score
        for score in sorted(pooled):
            held = pooled[score]
            blocks.append([math.fsum(held) / len(held), len(held), score, score])
            while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
                mean, weight, _, last = blocks.pop()
                before = blocks[-1]
                both = before[1] + weight
                before[0] = (before[0] * before[1] + mean * weight) / both
                before[1], before[3] = both, last
        knots, values = [], []
        for mean, _, low, high in blocks:
            for end in dict.fromkeys((low, high)):
                knots.append(end)
                values.append(mean)
        return cls(tuple(knots), tuple(values))

    def apply(self, score: float) -> float:
        """Return the calibrated score; constant beyond the ends."""
        return float(np.interp(score, self.knots, self.values))
