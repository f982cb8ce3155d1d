"""Expected calibration error and temperature scaling.

The outcome is the token in the record. A bin holds the positions whose largest probability lies in
it; the expected calibration error is the mean distance between confidence and accuracy over the
bins. One temperature, fitted on other records, is the baseline for any claim about calibration.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.evaluate.metrics.bootstrap import Metric, bootstrap_statistic

__all__ = ["NUM_BINS", "TemperatureScaler", "bin_confidences", "expected_calibration_error"]

NUM_BINS = 15
_INVERSE_TEMPERATURES = np.geomspace(0.25, 4.0, 11)  # grid of 1/T

Floats = npt.NDArray[np.float64]


def bin_confidences(confidence: Tensor, is_right: Tensor) -> Floats:
    """Return, for each of 15 equal bins of confidence, its positions' sums, (3, BINS).

    Rows are the number of positions, the sum of confidences, the number of correct ones.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2 (15 bins, top label).

    Args:
        confidence: The largest probability at each position, (n,).
        is_right: Whether the most likely token is the token in the record, (n,).
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


class TemperatureScaler:
    """Fits the temperature that maximizes the likelihood of the records' tokens.

    The loss is convex in 1/T; its slope is summed on a grid of temperatures, so that logits need
    not be stored, and the root is interpolated.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2 (temperature scaling).
    """

    def __init__(self) -> None:
        """Start without data."""
        self.positions = 0
        self._slopes = np.zeros(len(_INVERSE_TEMPERATURES))

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add positions: logits (n, V), float32, and the true tokens, (n,)."""
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
