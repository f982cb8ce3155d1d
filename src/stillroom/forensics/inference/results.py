"""Detector results: findings, and calibration of scores to probabilities (Platt, isotonic).

Calibration maps scores so that of inputs with probability 80 %, 80 % are forged, at the prevalence
of the validation set; a probability is adjusted where forgeries are rarer. Imports no network, so
that pages and tables can show findings.

Source: Guo et al. 2017, arXiv:1706.04599 (temperature); Platt 1999 (see ``fit_logistic``);
Zadrozny and Elkan 2002 (isotonic, by pooling adjacent violators, Ayer et al. 1955); Saerens et al.
2002, Neural Computation 14(1), equation 2.4 (prevalence).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat

from stillroom.errors import DataError
from stillroom.evaluate.metrics.calibration import fit_logistic
from stillroom.forensics.interfaces import CalibrationMethod

__all__ = [
    "UNCERTAIN_RANGE",
    "Calibrator",
    "DetectorFinding",
    "TrackFinding",
    "TrainingSetInfo",
    "adjust_prevalence",
    "fit_calibrator",
]

Floats = npt.NDArray[np.float64]
_EDGE = 1e-6


@dataclass(frozen=True)
class Calibrator:
    """Map logits to probabilities by ``slope`` and ``offset``, or by the steps of an isotonic fit.

    ``prevalence`` is the share of forgeries in the validation set; ``n`` is its size.
    """

    method: CalibrationMethod
    slope: FiniteFloat = 1.0
    offset: FiniteFloat = 0.0
    points: tuple[tuple[FiniteFloat, FiniteFloat], ...] = ()
    prevalence: Annotated[float, Field(gt=0, lt=1)] = 0.5
    n: Annotated[int, Field(ge=0, lt=2**53)] = 0

    def __post_init__(self) -> None:
        if self.method == "isotonic" and not self.points:
            raise ValueError("an isotonic fit without points")

    def chances(self, logits: Sequence[float] | Floats, prevalence: float | None = None) -> Floats:
        """Return the probability of forged for each logit, (N,).

        Args:
            logits: Raw scores.
            prevalence: Share of forgeries among the inputs, in (0, 1); None for that of the
                validation set.

        Raises:
            DataError: If the prevalence is not within (0, 1).
        """
        scores = np.asarray(logits, dtype=np.float64).reshape(-1)
        if self.method == "isotonic":
            knots, values = (np.array(side) for side in zip(*self.points, strict=True))
            chances = np.asarray(np.interp(scores, knots, values), dtype=np.float64)
        else:
            chances = _sigmoid(self.slope * scores + self.offset)
        if self.n:  # a sample of n images cannot show that an event never happens
            edge = 0.5 / (self.n + 1)
            chances = np.clip(chances, edge, 1 - edge)
        if prevalence is None:
            return chances
        return adjust_prevalence(chances, self.prevalence, prevalence)


def fit_calibrator(
    method: CalibrationMethod, labels: Sequence[int], logits: Sequence[float] | Floats
) -> Calibrator:
    """Fit a calibrator to validation scores.

    Args:
        method: Calibration method; ``none`` uses logits as log odds.
        labels: 1 for forged; both classes must occur.
        logits: Raw scores of the same images.

    Raises:
        DataError: If a class is missing, or a score is not finite.
    """
    truth = np.asarray(labels, dtype=np.float64)
    scores = np.asarray(logits, dtype=np.float64).reshape(-1)
    if len(truth) != len(scores) or not np.isfinite(scores).all() or len(set(truth.tolist())) < 2:
        raise DataError(
            "calibration needs finite scores of both real and forged faces",
            code="forensics.calibration",
            expected="validation faces: raise split.validation, or set calibration: none",
            next="check how the faces are split",
        )
    share, count = float(truth.mean()), len(truth)
    if method == "isotonic":
        return Calibrator(method, points=_fit_isotonic(scores, truth), prevalence=share, n=count)
    if method == "none":
        return Calibrator(method, prevalence=share, n=count)
    slope, offset = fit_logistic(scores, truth, with_offset=method == "platt")
    return Calibrator(method, slope, offset, prevalence=share, n=count)


def adjust_prevalence(chances: Floats, fitted: float, target: float) -> Floats:
    """Adjust probabilities to another prevalence: log odds shift by the prevalences' log odds.

    Raises:
        DataError: If a prevalence is not within (0, 1).
    """
    for share in (fitted, target):
        if not 0 < share < 1:
            raise DataError(
                f"a prevalence of {share} decides every file in advance",
                code="forensics.prevalence",
                where="prevalence",
                expected="a share above 0 and below 1, such as 0.01",
                next="pass the expected share of forgeries among such files",
            )
    clipped = np.clip(chances, _EDGE, 1 - _EDGE)
    shift = math.log(target / (1 - target)) - math.log(fitted / (1 - fitted))
    return _sigmoid(np.log(clipped / (1 - clipped)) + shift)


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(values / 2)))


def _fit_isotonic(scores: Floats, truth: Floats) -> tuple[tuple[float, float], ...]:
    """Return the isotonic fit to the labels, as points of a piecewise linear function.

    Values at the ends are moved inward by half a sample, since no finite sample shows never or
    always.
    """
    order = np.argsort(scores, kind="stable").tolist()
    blocks: list[list[float]] = []  # first score, last score, sum, count
    for index in order:
        blocks.append([float(scores[index]), float(scores[index]), float(truth[index]), 1.0])
        while len(blocks) > 1 and (
            blocks[-2][1] == blocks[-1][0]
            or blocks[-2][2] / blocks[-2][3] >= blocks[-1][2] / blocks[-1][3]
        ):
            last = blocks.pop()
            blocks[-1][1] = last[1]
            blocks[-1][2] += last[2]
            blocks[-1][3] += last[3]
    values = [total / count for _, _, total, count in blocks]
    low, high = (0.5 / (blocks[end][3] + 1) for end in (0, -1))
    # No further than the next block: a small block at an end says nothing about the others.
    values[0] = max(values[0], min(low, values[1] if len(blocks) > 1 else 1.0))
    values[-1] = min(values[-1], max(1 - high, values[-2] if len(blocks) > 1 else 0.0))
    points: list[tuple[float, float]] = []
    for (first, final, _, _), value in zip(blocks, values, strict=True):
        points += [(first, value)] + ([(final, value)] if final > first else [])
    return tuple(points)


UNCERTAIN_RANGE = (1 / 3, 2 / 3)
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class TrainingSetInfo:
    """The training set of a detector: name, digest over its files, size."""

    name: str = ""
    digest: str = ""
    count: int = 0

    def line(self) -> str:
        """Format as a clause."""
        if not self.digest:
            return f"trained on {self.name or 'an unnamed set'}"
        return f"trained on {self.name}, {self.count} in all, digest {self.digest[:12]}"


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """What the findings of a face and of a track share.

    ``chance`` is None where it is withheld for ``reasons``.
    """

    detector: str
    fingerprint: str
    logit: float
    chance: float | None
    prevalence: float
    reasons: tuple[str, ...] = ()
    training_set: TrainingSetInfo = field(default_factory=TrainingSetInfo)

    @property
    def verdict(self) -> str:
        """The conclusion, as one clause."""
        if self.chance is None:
            return f"inconclusive: {'; '.join(self.reasons)}"
        condition = f"chance {self.chance:.2f} where {self.prevalence:.3g} of such files are forged"
        low, high = UNCERTAIN_RANGE
        if self.chance > high:
            return f"indicates a forgery ({condition})"
        if self.chance < low:
            return f"does not indicate a forgery of the kinds it was trained on ({condition})"
        return f"inconclusive: neither likely nor unlikely ({condition})"

    def _to_json(self, face: list[int] | int | None) -> dict[str, Any]:
        return {
            "detector": self.detector,
            "fingerprint": self.fingerprint,
            "learned": asdict(self.training_set),
            "face": face,
            "verdict": self.verdict,
            "chance": self.chance,
            "prevalence": self.prevalence,
            "logit": self.logit,
        }


@dataclass(frozen=True, kw_only=True)
class DetectorFinding(_Finding):
    """Result of a detector for one face: the probability of forged, or reasons for none.

    ``box`` is the face's.
    """

    box: tuple[int, int, int, int]
    map: tuple[tuple[float, ...], ...] = ()

    @property
    def is_indicated(self) -> bool:
        """Whether a probability is given and high."""
        return self.chance is not None and self.chance > UNCERTAIN_RANGE[1]

    def line(self) -> str:
        """Format as one line with detector and face."""
        x, y, width, height = self.box
        face = f"face of {width}x{height} at {x},{y}"
        return f"{self.detector} ({self.training_set.line()}), {face}: {self.verdict}"

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            **self._to_json(list(self.box)),
            "reasons": list(self.reasons),
            "map": [list(row) for row in self.map],
        }


@dataclass(frozen=True, kw_only=True)
class TrackFinding(_Finding):
    """Result of a detector for one face of a clip over time, or for audio.

    ``face`` is its number, 0 for audio; ``times`` in seconds, ``logits`` and ``chances`` are per
    frame, or per segment for audio; ``chance`` is the probability of the mean logit; ``top`` is the
    mean of the highest fifth; ``notes`` describe parts that were not scored.
    """

    face: int
    times: tuple[float, ...]
    logits: tuple[float, ...]
    chances: tuple[float, ...]
    top: float
    notes: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """What was scored, such as ``face 1``."""
        return f"face {self.face}" if self.face else "sound"

    def line(self) -> str:
        """Format as one line with detector, face, and the probabilities over time as bars."""
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        subject = f"{self.detector} ({self.training_set.line()}), {self.subject}"
        if not self.times:
            return f"{subject}: {self.verdict}{notes}"
        bars = "".join(_BARS[round(chance * (len(_BARS) - 1))] for chance in self.chances)
        return (
            f"{subject}, {len(self.times)} scores from "
            f"{self.times[0]:.1f} to {self.times[-1]:.1f} s [{bars}]: {self.verdict}{notes}"
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            **self._to_json(self.face or None),
            "top_fifth_logit": self.top,
            "times": [round(time, 3) for time in self.times],
            "logits": list(self.logits),
            "chances": list(self.chances),
            "reasons": list(self.reasons),
            "notes": list(self.notes),
        }
