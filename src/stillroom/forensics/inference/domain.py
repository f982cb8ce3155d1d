"""Training domain of a detector: feature statistics and out-of-domain distances.

A detector gives some score for anything. So what is judged is compared with what was learned: in
the detector's own features and layers, in what can be measured of any picture or sound
(``looks``), and in what its file is (colours, size, coding). Distances are those of one Gaussian a
class with a shared covariance: its main axes, and one number for all others. The limits are set on
people who were not learned from, and tried on people that set no limit.

Source: Lee et al. 2018, arXiv:1807.03888, equation 2 (distance to the nearest class in features);
Dong et al. 2022, arXiv:2104.11408 (what layers carry: each channel's mean against the training's);
Tipping and Bishop 1999, "Probabilistic Principal Component Analysis" (the covariance); Vovk et al.
2005, "Algorithmic Learning in a Random World", chapter 4 (limits from held-out ranks).

It is not meant to tell forged from real: by it a detector knows what is unlike all it learned from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stillroom.forensics.media.audio import (
    SAMPLE_RATE,
    AudioSamples,
    compute_stft,
    make_mel_filterbank,
)
from stillroom.forensics.media.face import Image

__all__ = [
    "AUDIO_FEATURES",
    "FALSE_ALARM_RATE",
    "IMAGE_FEATURES",
    "FeatureDistribution",
    "FileTraits",
    "TrainingDomain",
    "find_distance_limit",
    "fit_distribution",
    "is_grayscale",
    "measure_audio",
    "measure_bandwidth",
    "measure_image",
]


Floats = npt.NDArray[np.float64]


Measurements = Mapping[str, Floats]


FALSE_ALARM_RATE = 0.05


"""Share of a known person's pictures that may be called unlike, for all distances together."""


_AXES = 32


_FLOOR = 1e-3  # of the mean variance: what never varied while learning may vary a little


_WIDER = 1.1  # how far beyond the largest that was learned from counts as the same


_VIDEO = "video"


_DISTANCE_LABELS = {"features": "in its own features", "layers": "in what its own layers carry"}


_STEPS = 201  # quantiles that are tried as limits


@dataclass(frozen=True, eq=False)
class FeatureDistribution:
    """Where real ones and fakes lie: means (2, D), axes (K, D), variances (K,), of all else one.

    ``spread`` is the deviation of each dimension, (D,).
    """

    means: Floats
    axes: Floats
    sizes: Floats
    rest: float
    spread: Floats

    def distances(self, given: Floats) -> Floats:
        """Return the distance of each row to the nearer class, (N,); 1 is what is usual."""
        found = []
        for mean in self.means:
            apart = np.asarray(given, dtype=np.float64) - mean
            along = apart @ self.axes.T
            other = np.maximum((apart**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
            total = (along**2 / self.sizes).sum(axis=1) + other / self.rest
            found.append(np.sqrt(total / self.means.shape[1]))
        nearest = np.minimum(found[0], found[1])
        return np.asarray(np.where(np.isfinite(nearest), nearest, np.inf))

    def most(self, given: Floats) -> int:
        """Return in which dimension one thing (D,) deviates most."""
        return int(np.argmax(np.abs(given - self.means.mean(axis=0)) / self.spread))

    def to_arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return its numbers by name, as they are stored."""
        parts = {**vars(self), "rest": np.array([self.rest])}
        return {name: np.asarray(value, dtype=np.float32) for name, value in parts.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.float32]]) -> FeatureDistribution:
        """Read what ``to_arrays`` returned.

        Raises:
            KeyError: If a part is missing.
            ValueError: If parts do not fit each other.
        """
        parts = {name: np.asarray(arrays[name], dtype=np.float64) for name in cls.__annotations__}
        wide = parts["means"].shape[-1]
        axes = parts["axes"].shape
        if parts["means"].shape != (2, wide) or axes != (len(parts["sizes"]), wide):
            raise ValueError(f"axes {axes} do not fit means {parts['means'].shape}")
        rest = float(parts.pop("rest")[0])
        return cls(rest=rest, **parts)


def fit_distribution(given: Floats, labels: Sequence[int]) -> FeatureDistribution:
    """Return the cloud of what was learned from.

    Args:
        given: (N, D).
        labels: 1 for forged; both occur.
    """
    given, truth = np.asarray(given, dtype=np.float64), np.asarray(labels)
    means = np.stack([given[truth == label].mean(axis=0) for label in (0, 1)])
    apart = given - means[truth]
    _, values, axes = np.linalg.svd(apart, full_matrices=False)
    sizes, wide = values**2 / len(given), given.shape[1]
    least = max(_FLOOR * float(sizes.sum()) / wide, 1e-12)
    count = min(_AXES, len(sizes))
    rest = float(sizes[count:].sum()) / max(wide - count, 1)
    spread = np.maximum(given.std(axis=0), math.sqrt(least))
    return FeatureDistribution(
        means, axes[:count], np.maximum(sizes[:count], least), max(rest, least), spread
    )


def find_distance_limit(distances: Floats, groups: Sequence[str], rate: float) -> float:
    """Return the least distance beyond which lies, in the mean over people, ``rate`` or less.

    Pictures of one person are alike, so few people say little: one standard error over people is
    added to the mean.

    Args:
        distances: Of people who were not learned from, (N,).
        groups: Whose each is.
        rate: As 0.05.
    """
    names = np.asarray(groups)
    own = [np.sort(distances[names == one]) for one in dict.fromkeys(groups)]
    for limit in np.quantile(distances, np.linspace(0.5, 1, _STEPS)).tolist():
        beyond = np.array([np.mean(one > limit) for one in own])
        if beyond.mean() + beyond.std() / math.sqrt(len(own)) <= rate:
            return float(limit)
    return float(distances.max())


@dataclass(frozen=True)
class FileTraits:
    """What the files were that a detector learned from.

    ``colours`` are ``grey``, ``colour`` or both; ``widest`` is the largest square about a face, in
    the picture's own pixels (0: not known), of sounds the highest frequency with energy, in Hz;
    ``codings`` are how files were coded, or treated while learning, as ``JPEG``; empty: not known.
    """

    colours: tuple[str, ...] = ()
    widest: float = 0.0
    codings: tuple[str, ...] = ()

    def doubts(
        self, *, colours: str = "", wide: float = 0.0, unit: str = "", coding: str = ""
    ) -> list[str]:
        """Return why a file is not what was learned from; what is not given is not compared."""
        found = []
        if colours and self.colours and colours not in self.colours:
            said = {"grey": "without colour", "colour": "in colour"}
            found.append(f"{said[colours]}, where it learned from {self.colours[0]} pictures alone")
        if self.widest and wide > _WIDER * self.widest:
            found.append(
                f"detail up to {wide:.0f} {unit}, beyond the {self.widest:.0f} it learned from"
            )
        if coding and self.codings and coding not in self.codings:
            found.append(f"coded as {coding}, where it learned from {', '.join(self.codings)}")
        return found


@dataclass(frozen=True, eq=False)
class TrainingDomain:
    """All that is kept of what a detector learned from, to know strangers by.

    ``clouds`` are of its ``features``, of what its ``layers`` carry where it has such, and of
    ``looks``; ``limits`` the farthest that known ones lie in each, by ``still`` and ``video``;
    ``names`` of the looks; ``tried`` what test people came to; ``people`` how many set the limits.
    """

    clouds: Mapping[str, FeatureDistribution]
    names: tuple[str, ...]
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    known: FileTraits = field(default_factory=FileTraits)
    rate: float = FALSE_ALARM_RATE
    people: int = 0
    tried: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, given: Measurements) -> dict[str, Floats]:
        """Return the distances of each thing, (N,), by cloud.

        Args:
            given: What was measured of N things, (N, D) by cloud.
        """
        return {name: cloud.distances(given[name]) for name, cloud in self.clouds.items()}

    def limit(self, *, is_video: bool = False) -> Mapping[str, float]:
        """Return the limits of pictures and sounds as they are, or of frames of video."""
        return self.limits.get(_VIDEO if is_video else "still", self.limits["still"])

    def is_within(self, given: Measurements, *, is_video: bool = False) -> npt.NDArray[np.bool_]:
        """Return of each thing whether all its distances are within the limits, (N,)."""
        limits = self.limit(is_video=is_video)
        near = [far <= limits[name] for name, far in self.measure(given).items()]
        return np.asarray(np.logical_and.reduce(near))

    def doubts(self, given: Measurements, *, is_video: bool = False) -> list[str]:
        """Return why what was seen is unlike what was learned; of several views the median counts.

        Args:
            given: What was measured of each view, (N, D) by cloud.
            is_video: Whether it was coded as video.
        """
        limits, found = self.limit(is_video=is_video), []
        for name, distances in self.measure(given).items():
            far = float(np.median(distances))
            if far <= limits[name]:
                continue
            where = _DISTANCE_LABELS.get(name, "")
            if name == "looks":
                where = f"most in {self.names[self.clouds[name].most(np.median(given[name], 0))]}"
            found.append(
                f"unlike what it learned from, {where} "
                f"(distance {far:.3g}, known ones within {limits[name]:.3g})"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values of all but the clouds."""
        return {
            "clouds": list(self.clouds),
            "names": list(self.names),
            "limits": {kind: dict(limits) for kind, limits in self.limits.items()},
            "known": {
                "colours": list(self.known.colours),
                "widest": self.known.widest,
                "codings": list(self.known.codings),
            },
            "rate": self.rate,
            "people": self.people,
            "tried": dict(self.tried),
        }

    def to_arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the clouds' numbers by name."""
        return {
            f"{cloud}.{name}": value
            for cloud, one in self.clouds.items()
            for name, value in one.to_arrays().items()
        }

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[np.float32]]
    ) -> TrainingDomain:
        """Read what ``to_json`` and ``to_arrays`` returned.

        Raises:
            KeyError: If a part is missing.
            ValueError: If parts do not fit each other.
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
        known = data["known"]
        return cls(
            clouds,
            tuple(data["names"]),
            {
                kind: {name: float(limits[name]) for name in clouds}
                for kind, limits in data["limits"].items()
            },
            FileTraits(tuple(known["colours"]), float(known["widest"]), tuple(known["codings"])),
            float(data["rate"]),
            int(data["people"]),
            dict(data["tried"]),
        )


FloatArray = npt.NDArray[np.float64]


Plane = npt.NDArray[np.float32]


_SCALES = 5


_BANDS, _LENGTH, _HOP = 12, 512, 256


_CLIP = 4  # dimensions of a clip, (T, H, W, 3)


_LEAST = 1e-6


_ENERGY = 0.999


IMAGE_FEATURES = (
    "brightness",
    "contrast",
    "its red against green",
    "its blue against yellow",
    "colourfulness",
    *(f"detail at a scale of {2**at}" for at in range(_SCALES)),
    "fine detail of colour",
    "blown highlights",
    "black shadows",
)


AUDIO_FEATURES = (
    *(f"energy of band {at + 1} of {_BANDS}" for at in range(_BANDS)),
    *(f"changes of band {at + 1} of {_BANDS}" for at in range(_BANDS)),
    "loudness",
)


def measure_image(image: Image) -> FloatArray:
    """Return what ``IMAGE_FEATURES`` names of a picture, (H, W, 3), or a clip's mean, (L,)."""
    if image.ndim == _CLIP:
        return np.asarray(np.mean([measure_image(frame) for frame in image], axis=0))
    planes = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb), dtype=np.float32)
    luma, red, blue = planes[..., 0], planes[..., 1] - 128, planes[..., 2] - 128
    found = [luma.mean() / 255, luma.std() / 255, red.mean() / 255, blue.mean() / 255]
    found.append(_log(np.hypot(red, blue).mean()))
    level = luma
    for _ in range(_SCALES):
        smaller = _reduce(level)
        found.append(_log((level - _enlarge(smaller, level)).std()))
        level = smaller
    found.append(_log((red - _enlarge(_reduce(red), red)).std()))
    found += [(luma > 250).mean(), (luma < 5).mean()]
    return np.array(found, dtype=np.float64)


def measure_audio(values: AudioSamples) -> FloatArray:
    """Return what ``AUDIO_FEATURES`` names of a sound (N,) at ``waves.RATE``, (L,)."""
    power = np.abs(compute_stft(values, _LENGTH, _HOP)) ** 2  # (T, bins)
    energy = np.log10(power @ make_mel_filterbank(_BANDS, _LENGTH).T + _LEAST)  # (T, bands)
    level = np.log10(float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) + _LEAST)
    return np.array([*energy.mean(axis=0), *energy.std(axis=0), level], dtype=np.float64)


def is_grayscale(image: Image) -> bool:
    """Return whether a picture or clip, (..., 3), has no colour but what rounding leaves."""
    gaps = image.max(axis=-1).astype(np.int16) - image.min(axis=-1)
    return bool(gaps.mean() < 1)


def measure_bandwidth(values: AudioSamples) -> float:
    """Return the frequency in Hz below which 99.9 % of a sound's energy lies."""
    power = np.square(np.abs(np.fft.rfft(values.astype(np.float64))))
    whole = float(power.sum())
    if whole <= 0:
        return 0.0
    place = int(np.argmax(np.cumsum(power) >= _ENERGY * whole))
    return place * SAMPLE_RATE / len(values)


def _reduce(level: Plane) -> Plane:
    return np.asarray(cv2.pyrDown(level), dtype=np.float32)


def _enlarge(small: Plane, like: Plane) -> Plane:
    return np.asarray(cv2.pyrUp(small, dstsize=(like.shape[1], like.shape[0])), dtype=np.float32)


def _log(value: float) -> float:
    return float(np.log(value + 0.25))  # a quarter of a step of 8 bits: below is rounding
