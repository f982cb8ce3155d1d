"""Expected calibration error (ECE), temperature scaling of tokens and Platt scaling of scores.

The outcome of the former two is the token in the record. A bin holds the positions whose largest
probability lies in it; the expected calibration error is the mean distance between confidence and
accuracy over the bins. One temperature, fitted on other records, is the baseline for any claim
about calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stillroom.evaluate.metrics.bootstrap import Metric, bootstrap_statistic

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "NUM_BINS",
    "TemperatureScaler",
    "bin_confidences",
    "expected_calibration_error",
    "fit_logistic",
    "fit_logistic_weights",
]

NUM_BINS = 15
_NEWTON_STEPS = 100
_MIN_SLOPE = 1e-6
_INVERSE_TEMPERATURES = np.geomspace(0.25, 4.0, 11)  # grid of 1/T
Floats = npt.NDArray[np.float64]


def bin_confidences(confidence: Tensor, is_right: Tensor) -> Floats:
    """Return, for each of 15 equal bins of confidence, its positions' sums, (3, BINS).

    Rows are the number of positions, the sum of confidences, the number of correct ones.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2 (15 bins, top label). Both arrays are
    (n,).
    """
    confidences = confidence.double().cpu().numpy()
    came = is_right.double().cpu().numpy()
    bin_index = np.clip(np.ceil(confidences * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return np.stack(
        [
            np.bincount(bin_index, weights=weights, minlength=NUM_BINS)
            for weights in (np.ones_like(confidences), confidences, came)
        ]
    )


def expected_calibration_error(
    bins: Sequence[Floats] | Floats,
    less: Sequence[Floats] | Floats | None = None,
    *,
    seed: int = 0,
    name: str = "",
) -> Metric:
    """Return the expected calibration error over all records together, with its interval.

    The error of few positions is biased upward by noise in the bins. Compare models on the same
    records, and read the difference.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.

    Args:
        bins: ``bin_confidences`` of each record, (records, 3, BINS).
        less: The same of another model; the difference is then returned.
        seed: Random seed of the bootstrap over records.
        name: The metric's name.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (bins, less) if side is not None]

    def error(counts: Floats) -> Floats:
        errors = [_binned_error(side, counts) for side in sides]
        return errors[0] if len(errors) == 1 else errors[0] - errors[1]

    return bootstrap_statistic(error, len(sides[0]), seed=seed, name=name)


def fit_logistic_weights(
    design: Floats, targets: Floats, *, ridge: float, counts: Floats | None = None
) -> Floats:
    """Return the weights of a logistic regression, (d,), by Newton's method.

    Args:
        design: Features, (n, d); a column of ones gives an intercept.
        targets: Probability of the label for each row, (n,).
        ridge: Weight of the squared norm; above 0, so that separated labels have a solution.
        counts: How often each row counts, (n,); default: once.
    """
    counted = np.ones(len(design)) if counts is None else counts
    weights = np.zeros(design.shape[1])
    penalty = ridge * np.eye(len(weights))
    for _ in range(_NEWTON_STEPS):
        predicted = 0.5 * (1 + np.tanh(design @ weights / 2))
        gradient = design.T @ ((predicted - targets) * counted) + penalty @ weights
        hessian = (design * (predicted * (1 - predicted) * counted)[:, None]).T @ design + penalty
        step = np.linalg.solve(hessian, gradient)
        weights -= step / max(1.0, float(np.abs(step).max()))
        if float(np.abs(step).max()) < 1e-10:
            break
    return weights


def fit_logistic(
    scores: Floats, labels: Floats, *, with_offset: bool = True
) -> tuple[float, float]:
    """Return slope and offset of the logistic function that gives the probability of a label.

    Fitted on Platt's corrected targets, which never reach 0 and 1, so that scores which
    separate the labels have a fit. The slope is positive whatever the labels are: a higher score
    never becomes a lower probability.

    Source: Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2.2.

    Args:
        scores: Finite scores, (n,).
        labels: 1 or 0 for each, (n,).
        with_offset: Whether an offset is fitted; else it is 0.
    """
    high, low = float(labels.sum()), float((1 - labels).sum())
    targets = np.where(labels == 1, (high + 1) / (high + 2), 1 / (low + 2))
    spread = float(scores.std()) or 1.0
    design = np.stack([scores / spread, np.ones_like(scores)], axis=1)[:, : 2 if with_offset else 1]
    weights = fit_logistic_weights(design, targets, ridge=1e-6)
    return max(float(weights[0]), _MIN_SLOPE) / spread, float(weights[1]) if with_offset else 0.0


class TemperatureScaler:
    """Fits the temperature that maximizes the likelihood of the records' tokens.

    The loss is convex in 1/T; its slope is summed on a grid of temperatures, so that logits need
    not be stored, and the root is interpolated.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2 (temperature scaling).
    """

    def __init__(self) -> None:
        self.positions = 0
        self._slopes = np.zeros(len(_INVERSE_TEMPERATURES))

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add positions: logits (n, V), float32, and the true tokens, (n,)."""
        import torch

        label_logits = logits.gather(1, labels[:, None])[:, 0]
        for index, inverse in enumerate(_INVERSE_TEMPERATURES):
            mean = (torch.softmax(logits * float(inverse), -1) * logits).sum(-1)
            self._slopes[index] += float((mean - label_logits).double().sum())
        self.positions += len(labels)

    @property
    def temperature(self) -> float:
        """The best temperature from 1/4 to 4; 1 without data."""
        if not self.positions:
            return 1.0
        slopes = self._slopes * _INVERSE_TEMPERATURES  # by log(1/T)
        rising = int(np.searchsorted(np.maximum.accumulate(slopes), 0.0))
        if rising == 0 or rising == len(slopes):
            return float(1 / _INVERSE_TEMPERATURES[min(rising, len(slopes) - 1)])
        below, above = slopes[rising - 1], slopes[rising]
        share = -below / (above - below)
        ends = np.log(_INVERSE_TEMPERATURES[rising - 1 : rising + 1])
        return float(np.exp(-(ends[0] + share * (ends[1] - ends[0]))))


def _binned_error(bins: Floats, counts: Floats) -> Floats:
    """Return the error of each row of counts (R, records) for bins (records, 3, BINS)."""
    gaps = np.abs(counts @ (bins[:, 1] - bins[:, 2]))  # (R, BINS)
    return np.asarray(gaps.sum(1) / (counts @ bins[:, 0].sum(1)))
