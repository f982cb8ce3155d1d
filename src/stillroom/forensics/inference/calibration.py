"""Calibration of detector scores to probabilities, and adjustment to another prevalence.

A logit is no probability: it is bent so that of what is said to be forged with 80 %, 80 % is, at
the share of forgeries it was fitted at. Elsewhere forgeries are rarer, and the chance moves with
them. Knows numbers alone.

Source: Guo et al. 2017, arXiv:1706.04599 (temperature); Platt 1999, "Probabilistic Outputs for
Support Vector Machines", with its corrected targets; Zadrozny and Elkan 2002 (isotonic, by pooling
adjacent violators, Ayer et al. 1955); Saerens et al. 2002, Neural Computation 14(1), equation 2.4
(prevalence).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError
from stillroom.forensics.interfaces import CalibrationMethod

__all__ = ["Calibrator", "adjust_prevalence", "fit_calibrator"]

Floats = npt.NDArray[np.float64]
_EDGE = 1e-6
_NEWTON_STEPS = 100


@dataclass(frozen=True)
class Calibrator:
    """Bends logits to chances: ``slope`` and ``offset``, or steps of an isotonic fit.

    ``prevalence`` is the share of forgeries it was fitted at; ``n`` how many pictures.
    """

    method: CalibrationMethod
    slope: float = 1.0
    offset: float = 0.0
    points: tuple[tuple[float, float], ...] = ()
    prevalence: float = 0.5
    n: int = 0

    def chances(self, logits: Sequence[float] | Floats, prevalence: float | None = None) -> Floats:
        """Return the chance of forged for each logit, (N,).

        Args:
            logits: Raw scores.
            prevalence: The share of forgeries among what is looked at, in (0, 1); None is the one
                it was fitted at.

        Raises:
            DataError: If the prevalence is not within (0, 1).
        """
        given = np.asarray(logits, dtype=np.float64).reshape(-1)
        if self.method == "isotonic":
            places, values = (np.array(side) for side in zip(*self.points, strict=True))
            found = np.asarray(np.interp(given, places, values), dtype=np.float64)
        else:
            found = _sigmoid(self.slope * given + self.offset)
        if self.n:  # no sample of n pictures shows that something never happens
            edge = 0.5 / (self.n + 1)
            found = np.clip(found, edge, 1 - edge)
        if prevalence is None:
            return found
        return adjust_prevalence(found, self.prevalence, prevalence)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "method": self.method,
            "slope": self.slope,
            "offset": self.offset,
            "points": [list(point) for point in self.points],
            "prevalence": self.prevalence,
            "n": self.n,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibrator:
        """Read what ``to_json`` wrote."""
        points = tuple((float(at), float(value)) for at, value in data["points"])
        return cls(
            data["method"],
            float(data["slope"]),
            float(data["offset"]),
            points,
            float(data["prevalence"]),
            int(data["n"]),
        )


def fit_calibrator(
    method: CalibrationMethod, labels: Sequence[int], logits: Sequence[float] | Floats
) -> Calibrator:
    """Return the calibrator that fits validation scores best.

    Args:
        method: Which family; ``none`` takes logits as log odds.
        labels: 1 for forged; both must occur.
        logits: Raw scores of the same pictures.

    Raises:
        DataError: If a class is missing, or a score is not finite.
    """
    truth = np.asarray(labels, dtype=np.float64)
    given = np.asarray(logits, dtype=np.float64).reshape(-1)
    if len(truth) != len(given) or not np.isfinite(given).all() or len(set(truth.tolist())) < 2:
        raise DataError(
            "a calibration needs finite scores of both real and forged faces",
            code="forensics.calibration",
            expected="validation faces: raise split.validation, or set calibration: none",
            next="look at how the faces are split",
        )
    share, count = float(truth.mean()), len(truth)
    if method == "isotonic":
        return Calibrator(method, points=_fit_isotonic(given, truth), prevalence=share, n=count)
    if method == "none":
        return Calibrator(method, prevalence=share, n=count)
    slope, offset = _fit_logistic(given, truth, with_offset=method == "platt")
    return Calibrator(method, slope, offset, prevalence=share, n=count)


def adjust_prevalence(chances: Floats, before: float, after: float) -> Floats:
    """Return chances at another share of forgeries: log odds shift by the shares' log odds.

    Raises:
        DataError: If a share is not within (0, 1).
    """
    for share in (before, after):
        if not 0 < share < 1:
            raise DataError(
                f"a prevalence of {share} leaves nothing to decide",
                code="forensics.prevalence",
                where="prevalence",
                expected="a share above 0 and below 1, as 0.01",
                next="give the share of forgeries that you expect among such files",
            )
    clipped = np.clip(chances, _EDGE, 1 - _EDGE)
    shift = math.log(after / (1 - after)) - math.log(before / (1 - before))
    return _sigmoid(np.log(clipped / (1 - clipped)) + shift)


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(values / 2)))


def _fit_logistic(given: Floats, truth: Floats, *, with_offset: bool) -> tuple[float, float]:
    """Return slope and offset by Newton's method on Platt's targets, which never reach 0 and 1.

    The slope is kept above 0: a calibration may not turn a detector's meaning round.
    """
    high, low = float(truth.sum()), float((1 - truth).sum())
    wanted = np.where(truth == 1, (high + 1) / (high + 2), 1 / (low + 2))
    spread = float(given.std()) or 1.0
    scaled = given / spread
    design = np.stack([scaled, np.ones_like(given)], axis=1)[:, : 2 if with_offset else 1]
    weights = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        said = _sigmoid(design @ weights)
        slope = design.T @ (said - wanted) + 1e-6 * weights
        bend = (design * (said * (1 - said))[:, None]).T @ design + 1e-6 * np.eye(len(weights))
        step = np.linalg.solve(bend, slope)
        weights -= step / max(1.0, float(np.abs(step).max()))
        if float(np.abs(step).max()) < 1e-10:
            break
    offset = float(weights[1]) if with_offset else 0.0
    return max(float(weights[0]), _EDGE) / spread, offset


def _fit_isotonic(given: Floats, truth: Floats) -> tuple[tuple[float, float], ...]:
    """Return the rising steps nearest to the labels, as points to be joined by lines.

    Ends are drawn in by half a picture, so that no finite sample says never or always.
    """
    order = np.argsort(given, kind="stable").tolist()
    blocks: list[list[float]] = []  # first place, last place, sum, count
    for at in order:
        blocks.append([float(given[at]), float(given[at]), float(truth[at]), 1.0])
        while len(blocks) > 1 and (
            blocks[-2][1] == blocks[-1][0]
            or blocks[-2][2] / blocks[-2][3] >= blocks[-1][2] / blocks[-1][3]
        ):
            last = blocks.pop()
            blocks[-1][1] = last[1]
            blocks[-1][2] += last[2]
            blocks[-1][3] += last[3]
    points: list[tuple[float, float]] = []
    for first, final, total, count in blocks:
        value = float(min(max(total / count, 0.5 / (count + 1)), 1 - 0.5 / (count + 1)))
        points += [(first, value)] + ([(final, value)] if final > first else [])
    rising = np.maximum.accumulate([value for _, value in points]).tolist()
    return tuple((at, float(value)) for (at, _), value in zip(points, rising, strict=True))
