"""Training domain of a detector: feature statistics and out-of-domain distances.

A detector gives some score for any input. Inputs are therefore compared with the training set: by
the detector's features and layer statistics, by general image or audio measurements (``looks``),
and by file traits (color, size, coding). Distances are Mahalanobis distances to the nearer of two
class Gaussians with a shared covariance: its main axes, and one variance for all others. The limits
are fitted on people outside of the training set, and tested on people that set no limit.

The distance does not separate forged from real; it detects inputs unlike the training set.

Source: Lee et al. 2018, arXiv:1807.03888, equation 2 (distance to the nearest class in features);
Dong et al. 2022, arXiv:2104.11408 (layer statistics: each channel's mean against the training's);
Tipping and Bishop 1999, "Probabilistic Principal Component Analysis" (the covariance); Vovk et al.
2005, "Algorithmic Learning in a Random World", chapter 4 (limits from held-out ranks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

__all__ = [
    "FALSE_ALARM_RATE",
    "FeatureDistribution",
    "FileTraits",
    "TrainingDomain",
    "find_distance_limit",
    "fit_distribution",
]

Floats = npt.NDArray[np.float64]
Measurements = Mapping[str, Floats]
FALSE_ALARM_RATE = 0.05
"""Share of a known person's images that may be rejected, over all distances together."""

_AXES = 32
_FLOOR = 1e-3  # of the mean variance: minimum variance of a dimension
_WIDER = 1.1  # tolerance above the largest training value
_VIDEO = "video"
_DISTANCE_LABELS = {"features": "in its own features", "layers": "in what its own layers carry"}
_STEPS = 201  # quantiles to try as limits


@dataclass(frozen=True, eq=False)
class FeatureDistribution:
    """Class means (2, D), main axes (K, D), their variances (K,), one variance for all others.

    ``spread`` is the standard deviation of each dimension, (D,).
    """

    means: Floats
    axes: Floats
    sizes: Floats
    rest: float
    spread: Floats

    def distances(self, measurements: Floats) -> Floats:
        """Return the distance of each row to the nearer class, (N,); 1 is typical."""
        distances = []
        for mean in self.means:
            deviation = np.asarray(measurements, dtype=np.float64) - mean
            along = deviation @ self.axes.T
            off_axis = np.maximum((deviation**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
            total = (along**2 / self.sizes).sum(axis=1) + off_axis / self.rest
            distances.append(np.sqrt(total / self.means.shape[1]))
        nearest = np.minimum(distances[0], distances[1])
        return np.asarray(np.where(np.isfinite(nearest), nearest, np.inf))

    def most_deviating(self, measurements: Floats) -> int:
        """Return the dimension in which an input (D,) deviates most."""
        return int(np.argmax(np.abs(measurements - self.means.mean(axis=0)) / self.spread))

    def to_arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the parameters by name for storage."""
        parts = {**vars(self), "rest": np.array([self.rest])}
        return {name: np.asarray(value, dtype=np.float32) for name, value in parts.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.float32]]) -> FeatureDistribution:
        """Restore a distribution from ``to_arrays`` values.

        Raises:
            KeyError: If a part is missing.
            ValueError: If the shapes of parts do not match.
        """
        parts = {name: np.asarray(arrays[name], dtype=np.float64) for name in cls.__annotations__}
        wide = parts["means"].shape[-1]
        axes = parts["axes"].shape
        if parts["means"].shape != (2, wide) or axes != (len(parts["sizes"]), wide):
            raise ValueError(f"axes {axes} do not fit means {parts['means'].shape}")
        other_variance = float(parts.pop("rest")[0])
        return cls(rest=other_variance, **parts)


def fit_distribution(measurements: Floats, labels: Sequence[int]) -> FeatureDistribution:
    """Fit the distribution of training inputs.

    Args:
        measurements: (N, D).
        labels: 1 for forged; both classes occur.
    """
    measurements, truth = np.asarray(measurements, dtype=np.float64), np.asarray(labels)
    means = np.stack([measurements[truth == label].mean(axis=0) for label in (0, 1)])
    deviation = measurements - means[truth]
    _, values, axes = np.linalg.svd(deviation, full_matrices=False)
    sizes, wide = values**2 / len(measurements), measurements.shape[1]
    least = max(_FLOOR * float(sizes.sum()) / wide, 1e-12)
    count = min(_AXES, len(sizes))
    other_variance = float(sizes[count:].sum()) / max(wide - count, 1)
    spread = np.maximum(measurements.std(axis=0), math.sqrt(least))
    return FeatureDistribution(
        means, axes[:count], np.maximum(sizes[:count], least), max(other_variance, least), spread
    )


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
    the codings of the files, or of augmentation, such as ``JPEG``; empty: unknown.
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

    ``clouds`` are the distributions of ``features``, of ``layers`` where recorded, and of
    ``looks``; ``limits`` the maximum distances of each, by ``still`` and ``video``; ``names`` the
    dimensions of ``looks``; ``tried`` the results on test people; ``people`` the number of people
    that set the limits.
    """

    clouds: Mapping[str, FeatureDistribution]
    names: tuple[str, ...]
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    known: FileTraits = field(default_factory=FileTraits)
    rate: float = FALSE_ALARM_RATE
    people: int = 0
    tried: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, measurements: Measurements) -> dict[str, Floats]:
        """Return the distances of N inputs, (N,), by distribution.

        Args:
            measurements: Measurements of the inputs, (N, D) by distribution.
        """
        return {name: cloud.distances(measurements[name]) for name, cloud in self.clouds.items()}

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
            measurements: Measurements of its views, (N, D) by distribution.
            is_video: Whether it was coded as video.
        """
        limits, doubts = self.limit(is_video=is_video), []
        for name, distances in self.measure(measurements).items():
            far = float(np.median(distances))
            if far <= limits[name]:
                continue
            where = _DISTANCE_LABELS.get(name, "")
            if name == "looks":
                feature = self.clouds[name].most_deviating(np.median(measurements[name], 0))
                where = f"most in {self.names[feature]}"
            doubts.append(
                f"unlike its training data, {where} "
                f"(distance {far:.3g}, known ones within {limits[name]:.3g})"
            )
        return doubts

    def to_json(self) -> dict[str, Any]:
        """Convert all but the distributions to JSON-compatible values."""
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
        """Return the parameters of the distributions by name."""
        return {
            f"{cloud}.{name}": value
            for cloud, distribution in self.clouds.items()
            for name, value in distribution.to_arrays().items()
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
            cloud: FeatureDistribution.from_arrays(
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
                kind: {name: float(limits[name]) for name in clouds}
                for kind, limits in data["limits"].items()
            },
            TypeAdapter(FileTraits).validate_python(data["known"]),
            float(data["rate"]),
            int(data["people"]),
            dict(data["tried"]),
        )
