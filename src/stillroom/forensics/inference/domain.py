"""Training domain of a detector: feature statistics and out-of-domain distances.

A detector gives some score for any input. Inputs are therefore compared with the training set: by
the detector's layer statistics, or by its features where it has none, by general image or audio
measurements (``looks``), and by file traits (color, size, coding). Of layer statistics what the
main axes of the training set leave over counts; the other distances are those to the nearest
training input of another person, in standard deviations. Training and validation people set the
limits, which are tested on people that set none.

Distances do not separate forged from real; they detect inputs unlike the training set.

Source: Sun et al. 2022, arXiv:2204.06507 (distance to the nearest neighbor; here k = 1, and
standardized instead of normalized); Wang et al. 2022, arXiv:2203.10807 (ViM: the residual off the
main axes; here of layer statistics instead of features); Dong et al. 2022, arXiv:2104.11408 (layer
statistics: each channel's mean against the training's); Vovk et al. 2005, "Algorithmic Learning in
a Random World", chapter 4 (limits from held-out ranks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

__all__ = [
    "FALSE_ALARM_RATE",
    "FeatureAxes",
    "FeatureNeighbors",
    "FileTraits",
    "TrainingDomain",
    "find_distance_limit",
    "fit_axes",
    "fit_neighbors",
    "measure_residuals",
]

Floats = npt.NDArray[np.float64]
Measurements = Mapping[str, Floats]
FALSE_ALARM_RATE = 0.05
"""Share of a known person's images that may be rejected, over all distances together."""

_FLOOR = 1e-3  # of the mean variance: minimum variance of a dimension
_BLOCK = 256
_MAX_AXES, _ROWS_PER_AXIS = 32, 8
_FOLDS = 10
_WIDER = 1.1  # tolerance above the largest training value
_VIDEO = "video"
_DISTANCE_LABELS = {"features": "in its own features", "layers": "in what its own layers carry"}
_STEPS = 201  # quantiles to try as limits


class _StoredArrays:
    """Arrays by name, stored as float32."""

    def to_arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the parameters by name for storage."""
        return {name: np.asarray(value, dtype=np.float32) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.float32]]) -> Self:
        """Restore from ``to_arrays`` values.

        Raises:
            KeyError: If a part is missing.
            ValueError: If the shapes of parts do not match.
        """
        names = cls.__annotations__
        return cls(**{name: np.asarray(arrays[name], dtype=np.float64) for name in names})


@dataclass(frozen=True, eq=False)
class FeatureNeighbors(_StoredArrays):
    """Training inputs, (N, D), and the standard deviation of each dimension, (D,)."""

    rows: Floats
    spread: Floats

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or not len(self.rows) or self.spread.shape != self.rows.shape[1:]:
            raise ValueError(f"spread {self.spread.shape} does not fit rows {self.rows.shape}")

    def distances(
        self, measurements: Floats, excluded: npt.NDArray[np.bool_] | None = None
    ) -> Floats:
        """Return the distance of each row to the nearest training input, (M,).

        Distances are root mean squares over the dimensions, in standard deviations.

        Args:
            measurements: (M, D).
            excluded: Training inputs that a row is not compared with, (M, N).
        """
        known, given = self.rows / self.spread, np.asarray(measurements) / self.spread
        nearest = np.full(len(given), np.inf)
        for start in range(0, len(given), _BLOCK):
            block = given[start : start + _BLOCK]
            gaps = (known**2).sum(axis=1) + (block**2).sum(axis=1)[:, None] - 2 * block @ known.T
            if excluded is not None:
                gaps[excluded[start : start + _BLOCK]] = np.inf
            nearest[start : start + _BLOCK] = gaps.min(axis=1).clip(0)
        return np.where(np.isfinite(nearest), np.sqrt(nearest / known.shape[1]), np.inf)

    def most_deviating(self, measurements: Floats) -> int:
        """Return the dimension in which an input (D,) deviates most from the nearest one."""
        gaps = np.abs(measurements - self.rows) / self.spread
        return int(np.argmax(gaps[np.argmin((gaps**2).sum(axis=1))]))


@dataclass(frozen=True, eq=False)
class FeatureAxes(_StoredArrays):
    """Main axes, (K, D), of training inputs in standard deviations about their mean."""

    mean: Floats
    spread: Floats
    axes: Floats

    def __post_init__(self) -> None:
        mean, spread, axes = self.mean.shape, self.spread.shape, self.axes.shape
        if len(axes) != 2 or not mean == spread == axes[1:]:
            raise ValueError(f"axes {axes} do not fit mean {mean}, {spread}")

    def distances(
        self, measurements: Floats, excluded: npt.NDArray[np.bool_] | None = None
    ) -> Floats:
        """Return what the main axes leave over of each row, (M,), as a root mean square.

        Args:
            measurements: (M, D).
            excluded: Not used; see ``measure_residuals``.
        """
        given = (np.asarray(measurements) - self.mean) / self.spread
        rest = given - given @ self.axes.T @ self.axes
        return np.asarray(np.sqrt((rest**2).mean(axis=1)))


def fit_axes(measurements: Floats) -> FeatureAxes:
    """Return the main axes of training inputs, (N, D): at most 32, one for 8 inputs or numbers."""
    rows = np.asarray(measurements, dtype=np.float64)
    mean, spread = rows.mean(axis=0), _measure_spread(rows)
    count = min(_MAX_AXES, max(min(rows.shape) // _ROWS_PER_AXIS, 1))
    scaled = (rows - mean) / spread
    variances, weights = np.linalg.eigh(scaled @ scaled.T)  # dimensions outnumber rows
    axes = weights[:, -count:].T @ scaled
    return FeatureAxes(mean, spread, axes / np.sqrt(np.maximum(variances[-count:, None], 1e-12)))


def measure_residuals(
    fitted: Floats, fitted_groups: Sequence[str], measurements: Floats, groups: Sequence[str]
) -> Floats:
    """Return what axes leave over of each row that were fitted without its person's fold, (M,).

    Args:
        fitted: Training inputs, (N, D).
        fitted_groups: Person of each.
        measurements: Inputs of the same people, (M, D).
        groups: Person of each.
    """
    folds = {person: at % _FOLDS for at, person in enumerate(dict.fromkeys(fitted_groups))}
    known, given = (np.array([folds[one] for one in names]) for names in (fitted_groups, groups))
    residuals = np.zeros(len(measurements))
    for fold in dict.fromkeys(folds.values()):
        rest = fitted[known != fold] if (known != fold).any() else fitted
        residuals[given == fold] = fit_axes(rest).distances(measurements[given == fold])
    return residuals


def _measure_spread(rows: Floats) -> Floats:
    least = max(_FLOOR * float(rows.var(axis=0).mean()), 1e-12)
    return np.asarray(np.sqrt(np.maximum(rows.var(axis=0), least)))


def fit_neighbors(measurements: Floats) -> FeatureNeighbors:
    """Return the neighbors for training inputs, (N, D)."""
    rows = np.asarray(measurements, dtype=np.float64)
    return FeatureNeighbors(rows, _measure_spread(rows))


def find_distance_limit(distances: Floats, groups: Sequence[str], rate: float) -> float:
    """Return the least limit that at most ``rate`` of a person's distances exceed, on average.

    Images of one person are correlated, so that few people are weak evidence: one standard error
    over people is added to the mean.

    Args:
        distances: Distances of people outside of the training set, (N,).
        groups: Person of each distance.
        rate: Permitted share, such as 0.05.
    """
    names = np.asarray(groups)
    by_person = [np.sort(distances[names == person]) for person in dict.fromkeys(groups)]
    for limit in np.quantile(distances, np.linspace(0.5, 1, _STEPS)).tolist():
        beyond = np.array([np.mean(person > limit) for person in by_person])
        if beyond.mean() + beyond.std() / math.sqrt(len(by_person)) <= rate:
            return float(limit)
    return float(distances.max())


@dataclass(frozen=True)
class FileTraits:
    """Traits of the training files.

    ``colors`` are ``gray``, ``color`` or both; ``widest`` is the largest square around a face in
    source pixels (0: unknown), for audio the highest frequency with energy, in Hz; ``codings`` are
    the codings of the files, or of augmentation, such as ``JPEG 4:2:0``; empty: unknown. Scaling
    down hides the traces of coding, so that a face larger than any known one is unlike them all.
    """

    colors: tuple[str, ...] = ()
    widest: float = 0.0
    codings: tuple[str, ...] = ()

    def doubts(
        self, *, colors: str = "", wide: float = 0.0, unit: str = "", coding: str = ""
    ) -> list[str]:
        """Return reasons why a file differs from the training files; omitted traits are skipped."""
        doubts = []
        if colors and self.colors and colors not in self.colors:
            descriptions = {"gray": "without color", "color": "in color"}
            doubts.append(f"{descriptions[colors]}, but trained on {self.colors[0]} images only")
        if self.widest and wide > _WIDER * self.widest:
            doubts.append(
                f"detail up to {wide:.0f} {unit}, beyond the {self.widest:.0f} of its training data"
            )
        if coding and self.codings and coding not in self.codings:
            doubts.append(f"coded as {coding}, but trained on {', '.join(self.codings)}")
        return doubts


@dataclass(frozen=True, eq=False)
class TrainingDomain:
    """Description of a training set, for out-of-domain detection.

    ``clouds`` are the axes of ``layers``, or the neighbors in ``features`` without layer
    statistics, and the neighbors in ``looks``; ``limits`` the maximum distances of each, by
    ``still`` and ``video``; ``names`` the dimensions of ``looks``; ``tried`` the results on test
    people; ``people`` the number of people that set the limits.
    """

    clouds: Mapping[str, FeatureAxes | FeatureNeighbors]
    names: tuple[str, ...]
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    known: FileTraits = field(default_factory=FileTraits)
    rate: float = FALSE_ALARM_RATE
    people: int = 0
    tried: Mapping[str, Any] = field(default_factory=dict)

    def measure(
        self, measurements: Measurements, excluded: npt.NDArray[np.bool_] | None = None
    ) -> dict[str, Floats]:
        """Return the distances of M inputs, (M,), by name; arguments as of ``distances``."""
        return {
            name: cloud.distances(measurements[name], excluded)
            for name, cloud in self.clouds.items()
        }

    def limit(self, *, is_video: bool = False) -> Mapping[str, float]:
        """Return the limits for images and audio, or for video frames."""
        return self.limits.get(_VIDEO if is_video else "still", self.limits["still"])

    def is_within(
        self, measurements: Measurements, *, is_video: bool = False
    ) -> npt.NDArray[np.bool_]:
        """Return whether all distances of each input are within the limits, (N,)."""
        limits = self.limit(is_video=is_video)
        near = [far <= limits[name] for name, far in self.measure(measurements).items()]
        return np.asarray(np.logical_and.reduce(near))

    def doubts(self, measurements: Measurements, *, is_video: bool = False) -> list[str]:
        """Return reasons why an input is out of domain; the median over its views counts.

        Args:
            measurements: Measurements of its views, (N, D) by name.
            is_video: Whether it was coded as video.
        """
        limits, doubts = self.limit(is_video=is_video), []
        for name, distances in self.measure(measurements).items():
            far = float(np.median(distances))
            if far <= limits[name]:
                continue
            where, cloud = _DISTANCE_LABELS.get(name, ""), self.clouds[name]
            if isinstance(cloud, FeatureNeighbors) and name == "looks":
                feature = cloud.most_deviating(np.median(measurements[name], 0))
                where = f"most in {self.names[feature]}"
            doubts.append(
                f"unlike its training data, {where} "
                f"(distance {far:.3g}, known ones within {limits[name]:.3g})"
            )
        return doubts

    def to_json(self) -> dict[str, Any]:
        """Convert all but neighbors and axes to JSON-compatible values."""
        return {
            "clouds": list(self.clouds),
            "names": list(self.names),
            "limits": {kind: dict(limits) for kind, limits in self.limits.items()},
            "known": asdict(self.known),
            "rate": self.rate,
            "people": self.people,
            "tried": dict(self.tried),
        }

    def to_arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the arrays of neighbors and axes by name."""
        return {
            f"{cloud}.{name}": value
            for cloud, neighbors in self.clouds.items()
            for name, value in neighbors.to_arrays().items()
        }

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[np.float32]]
    ) -> TrainingDomain:
        """Restore a domain from ``to_json`` and ``to_arrays`` values.

        Raises:
            KeyError: If a part is missing.
            ValueError: If the shapes of parts do not match.
        """
        clouds = {
            cloud: (FeatureAxes if cloud == "layers" else FeatureNeighbors).from_arrays(
                {
                    name.removeprefix(f"{cloud}."): value
                    for name, value in arrays.items()
                    if name.startswith(f"{cloud}.")
                }
            )
            for cloud in data["clouds"]
        }
        return cls(
            clouds,
            tuple(data["names"]),
            {
                kind: {name: float(data["limits"][kind][name]) for name in clouds}
                for kind in {"still": None, **data["limits"]}
            },
            TypeAdapter(FileTraits).validate_python(data["known"]),
            float(data["rate"]),
            int(data["people"]),
            dict(data["tried"]),
        )
