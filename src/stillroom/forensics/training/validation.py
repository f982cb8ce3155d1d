"""Validation of a detector: metrics by condition, operating limits, domain, and heatmaps.

Metrics are areas under the curve with an interval over people. Perturbations apply to real and
forged images alike.

The domain is fitted on samples that are unchanged, and randomly perturbed within the operating
limits, so that inputs within the limits are not reported as out of domain.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from stillroom.evaluate import Metric, bootstrap
from stillroom.forensics.benchmark.metrics import (
    area_under_curve,
    bootstrap_auc,
    brier_score,
    expected_calibration_error,
)
from stillroom.forensics.inference.calibration import Calibrator
from stillroom.forensics.inference.detector_set import (
    HEATMAP_BATCH_SIZE,
    Heatmaps,
    compute_heatmaps,
)
from stillroom.forensics.inference.domain import (
    AUDIO_FEATURES,
    FALSE_ALARM_RATE,
    IMAGE_FEATURES,
    FileTraits,
    TrainingDomain,
    find_distance_limit,
    fit_distribution,
    is_grayscale,
    measure_bandwidth,
)
from stillroom.forensics.inference.results import TrainingSetInfo
from stillroom.forensics.inference.trained_detector import (
    DetectorMetadata,
    ScoredBatch,
    TrainedDetector,
)
from stillroom.forensics.interfaces import ImageForgery
from stillroom.forensics.media.audio import AudioSamples, Waveform
from stillroom.forensics.media.augmentation import center_window, cut_window, to_channels_first
from stillroom.forensics.media.face import Face, Image, Mask
from stillroom.forensics.media.transforms import compress_jpeg, rescale
from stillroom.forensics.media.video import apply_video_codec
from stillroom.forensics.networks.interfaces import DetectorNetwork
from stillroom.forensics.training.pairs import forge_clip, forge_pair
from stillroom.provenance import digest_json

__all__ = [
    "IMAGE_CONDITIONS",
    "MAX_DOMAIN_SAMPLES",
    "LabeledSamples",
    "PointingGame",
    "ValidationSet",
    "apply_perturbation",
    "describe_training_set",
    "find_operating_limits",
    "fit_domain",
    "make_image_perturbation",
    "make_validation_set",
    "measure_calibration",
    "measure_conditions",
    "randomize_weights",
    "reestimate_batch_norm",
    "report_domain",
    "run_pointing_game",
    "select_evenly",
    "summarize_audio_files",
    "summarize_face_files",
]


_QUALITIES = (90, 70, 50, 40, 30, 20)


_SHARES = (0.75, 0.5, 0.375, 0.25)


_CLIP_NDIM = 4  # dimensions of a clip, (T, H, W, 3)


_MIN_REMAINING = 0.7  # share of the area above chance that must remain within the limits


def _noisy(image: Image) -> Image:
    rng = np.random.default_rng(int(image.sum(dtype=np.int64)))
    noisy = image + rng.normal(0, 8, image.shape)
    return np.asarray(np.clip(np.rint(noisy), 0, 255), dtype=np.uint8)


def _compress_h264(image: Image) -> Image:
    """Encode as H.264 at a bit rate of social networks; a clip is encoded whole."""
    frames = list(image) if image.ndim == _CLIP_NDIM else [image]
    coded = apply_video_codec(frames, 28)
    return np.stack(coded) if image.ndim == _CLIP_NDIM else coded[0]


def _blurred(image: Image) -> Image:
    share = image.shape[0] / 224  # sigma 1.5 for faces of 224 pixels
    return np.asarray(cv2.GaussianBlur(image, (0, 0), max(1.5 * share, 0.3)), dtype=np.uint8)


IMAGE_CONDITIONS: Mapping[str, Callable[[Image], Image]] = {
    "clean": lambda image: image,
    "jpeg70": lambda image: compress_jpeg(image, 70),
    "jpeg40": lambda image: compress_jpeg(image, 40),
    "half": lambda image: rescale(image, 0.5),
    "noise8": _noisy,
    "blur": _blurred,
    "h264": _compress_h264,
}


class LabeledSamples(Protocol):
    """Images or waveforms, their labels (1 for forged), and their identities."""

    @property
    def samples(self) -> Sequence[Any]:
        """Images or waveforms."""

    @property
    def labels(self) -> Sequence[int]:
        """Labels; fakes first."""

    @property
    def groups(self) -> Sequence[str]:
        """Identities."""


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Images with labels, forgery masks, and identities; fakes first."""

    images: tuple[Image, ...]
    labels: tuple[int, ...]
    masks: tuple[Mask, ...]
    groups: tuple[str, ...]

    @property
    def samples(self) -> tuple[Image, ...]:
        """Images, as ``LabeledSamples`` names them."""
        return self.images

    def measure(
        self, detector: TrainedDetector, change: Callable[[Image], Image], name: str
    ) -> Metric:
        """Return the area under the curve after a perturbation of all images."""
        scores = detector.logits([apply_perturbation(change, image) for image in self.images])
        return bootstrap_auc(self.labels, scores, self.groups, name=name)


def make_validation_set(
    faces: Sequence[Face],
    forgeries: Sequence[ImageForgery],
    *,
    seed: int,
    repeats: int = 1,
    frames: int = 1,
) -> ValidationSet:
    """Forge some faces deterministically, and return them with their real twins.

    Args:
        faces: Faces to forge; second faces are drawn from them, too.
        forgeries: One is drawn at random per face.
        seed: Random seed.
        repeats: Number of forgeries per face; its twins are repeated as often.
        frames: Above 1: make clips, (T, S, S, 3) with masks (T, S, S).
    """
    fakes, twins, masks, groups = [], [], [], []
    for number in range(len(faces)):
        for again in range(repeats):
            rng = np.random.default_rng([seed, number, again, 0x7E57])
            image, twin, mask = _forge_one(faces, number, forgeries, frames, rng)
            fakes.append(image)
            twins.append(twin)
            masks.append(mask)
            groups.append(faces[number].identity)
    count = len(fakes)
    return ValidationSet(
        (*fakes, *twins),
        (*[1] * count, *[0] * count),
        (*masks, *[np.zeros_like(mask) for mask in masks]),
        (*groups, *groups),
    )


def _forge_one(
    faces: Sequence[Face],
    number: int,
    forgeries: Sequence[ImageForgery],
    frames: int,
    rng: np.random.Generator,
) -> tuple[Image, Image, Mask]:
    if frames == 1:
        forged = forge_pair(faces, number, forgeries, rng)
        return forged.image, forged.twin, forged.mask
    clip = forge_clip(faces, number, forgeries, frames, rng)
    return (
        np.stack([frame.image for frame in clip]),
        np.stack([frame.twin for frame in clip]),
        np.stack([frame.mask for frame in clip]),
    )


def apply_perturbation(change: Callable[[Image], Image], image: Image) -> Image:
    """Apply a perturbation to an image, or to each frame of a clip."""
    if image.ndim != _CLIP_NDIM or change is _compress_h264:
        return change(image)
    return np.stack([change(frame) for frame in image])


def measure_conditions(detector: TrainedDetector, trial: ValidationSet) -> dict[str, Any]:
    """Return the area under the curve under each condition, as JSON-compatible values."""
    return {
        name: trial.measure(detector, change, name).to_json()
        for name, change in IMAGE_CONDITIONS.items()
    }


def find_operating_limits(detector: TrainedDetector, trial: ValidationSet) -> tuple[int, int, bool]:
    """Return the smallest face crop, the lowest JPEG quality, and whether the detector works.

    Qualities and sizes are lowered until less than 70 % of the area above chance remains. The
    detector works if the whole interval of its area is above 0.5.
    """
    clean = trial.measure(detector, lambda image: image, "clean")
    works = bool(clean.low > 0.5)
    limit = 0.5 + _MIN_REMAINING * (clean.value - 0.5)
    size = trial.images[0].shape[-2]

    def holds(change: Callable[[Image], Image]) -> bool:
        scores = detector.logits([apply_perturbation(change, image) for image in trial.images])
        area = area_under_curve(trial.labels, scores)
        return area is not None and area >= limit

    least_quality, least_face = 100, size
    for quality in _QUALITIES:
        if not holds(lambda image, quality=quality: compress_jpeg(image, quality)):  # type: ignore[misc]
            break
        least_quality = quality
    for share in _SHARES:
        if not holds(lambda image, share=share: rescale(image, share)):  # type: ignore[misc]
            break
        least_face = round(size * share)
    return least_face, least_quality, works


MAX_DOMAIN_SAMPLES = 300


"""Maximum number of training faces or waveforms that a domain is fitted on."""

Floats = npt.NDArray[np.float64]


MediaItems = Sequence[Image] | Sequence[AudioSamples]


Perturbation = Callable[[Any, np.random.Generator], Any]


def fit_domain(
    detector: TrainedDetector,
    parts: Mapping[str, LabeledSamples],
    known: FileTraits,
    change: Perturbation,
    *,
    code: Perturbation | None = None,
    seed: int = 0,
) -> TrainingDomain:
    """Fit the training domain of a detector.

    Args:
        detector: A calibrated detector with operating limits.
        parts: ``train`` fits the distributions, ``validation`` the limits, ``test`` checks them.
        known: Traits of the training files.
        change: Random perturbation within the operating limits.
        code: Video encoding, where the detector was validated on it.
        seed: Random seed.
    """
    rng = np.random.default_rng([seed, 0xD0])
    first, labels = _score_perturbed(
        detector, parts["train"], [_leave_unchanged, change, change], rng
    )
    clouds = {name: fit_distribution(rows, labels) for name, rows in first.measures.items()}
    names = AUDIO_FEATURES if detector.metadata.method.is_audio else IMAGE_FEATURES
    domain = TrainingDomain(clouds, names, known=known)
    kinds: dict[str, list[Perturbation]] = {"still": [_leave_unchanged, change, change]}
    if code is not None:
        kinds["video"] = [code]
    people = parts["validation"].groups
    limits: dict[str, dict[str, float]] = {}
    for kind, changes in kinds.items():
        batch, _ = _score_perturbed(detector, parts["validation"], changes, rng)
        groups, share = [*people] * len(changes), FALSE_ALARM_RATE / len(clouds)
        limits[kind] = {
            name: find_distance_limit(far, groups, share)
            for name, far in domain.measure(batch.measures).items()
        }
    domain = replace(domain, limits=limits, people=len(set(people)))
    return replace(domain, tried=_measure_coverage(detector, domain, parts["test"], kinds, rng))


def _measure_coverage(
    detector: TrainedDetector,
    domain: TrainingDomain,
    test: LabeledSamples,
    kinds: Mapping[str, Sequence[Perturbation]],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return the share of test people's samples that are within the domain, with intervals."""
    coverage: dict[str, Any] = {}
    for kind, changes in {"as they are": [_leave_unchanged], **kinds}.items():
        batch, labels = _score_perturbed(detector, test, changes, rng)
        within = domain.is_within(batch.measures, is_video=kind == "video")
        groups = np.array([*test.groups] * len(changes))
        shares = [float(within[groups == person].mean()) for person in dict.fromkeys(test.groups)]
        metric = bootstrap(shares, name=f"within, {kind}").to_json()
        truth = np.array(labels)
        coverage[kind] = {
            **metric,
            "real": float(within[truth == 0].mean()),
            "forged": float(within[truth == 1].mean()),
        }
    return coverage


def _score_perturbed(
    detector: TrainedDetector,
    part: LabeledSamples,
    changes: Sequence[Perturbation],
    rng: np.random.Generator,
) -> tuple[ScoredBatch, list[int]]:
    """Score every sample after each perturbation, one perturbation after another."""
    batches = [
        detector.score([change(sample, rng) for sample in part.samples]) for change in changes
    ]
    logits = np.concatenate([batch.logits for batch in batches])
    measures = {
        name: np.concatenate([batch.measures[name] for batch in batches])
        for name in batches[0].measures
    }
    return ScoredBatch(logits, measures), [*part.labels] * len(changes)


def _leave_unchanged(sample: Any, rng: np.random.Generator) -> Any:
    return sample


def make_image_perturbation(least_quality: int, least_share: float) -> Perturbation:
    """Return a random perturbation: JPEG or downscaling, within bounds.

    Args:
        least_quality: Minimum JPEG quality.
        least_share: Minimum scale.
    """

    def change(image: Image, rng: np.random.Generator) -> Image:
        is_saved, position = bool(rng.random() < 0.5), float(rng.random())
        quality = round(least_quality + (100 - least_quality) * position)
        share = least_share + (1 - least_share) * position

        def one(frame_image: Image) -> Image:
            return compress_jpeg(frame_image, quality) if is_saved else rescale(frame_image, share)

        return np.stack([one(frame) for frame in image]) if image.ndim == _CLIP_NDIM else one(image)

    return change


def summarize_face_files(
    faces: Sequence[Face], fakes: Sequence[Image], *, jpeg: float
) -> FileTraits:
    """Summarize the traits of face files.

    Args:
        faces: Training faces.
        fakes: Forgeries of them.
        jpeg: Share of training images that were compressed as JPEG.
    """
    images = [*(face.image for face in faces), *fakes]
    colors = sorted({"grey" if is_grayscale(image) else "colour" for image in images})
    codings = {coding for face in faces for coding in face.codings}
    if codings and jpeg:
        codings.add("JPEG")
    wide = [min(face.wide, face.image.shape[0]) for face in faces]
    return FileTraits(tuple(colors), max(wide) if min(wide) else 0.0, tuple(sorted(codings)))


def summarize_audio_files(waves: Sequence[Waveform], *, coded: float) -> FileTraits:
    """Summarize the traits of audio files; ``coded`` is the share encoded in training."""
    codings = {coding for wave in waves for coding in wave.codings}
    if codings and coded:
        codings |= {"mp3", "aac"}
    return FileTraits(
        (), max(measure_bandwidth(wave.values) for wave in waves), tuple(sorted(codings))
    )


def describe_training_set(
    name: str, samples: Sequence[Face] | Sequence[Waveform]
) -> TrainingSetInfo:
    """Return name and digest of a training set: over its files' names and digests, in any order."""
    rows = sorted([sample.name, sample.digest] for sample in samples)
    return TrainingSetInfo(name, digest_json(rows), len(rows))


def select_evenly(numbers: Sequence[int]) -> list[int]:
    """Return at most ``MAX_DOMAIN_SAMPLES`` numbers, evenly spaced."""
    step = max(len(numbers) / MAX_DOMAIN_SAMPLES, 1.0)
    return [numbers[int(index * step)] for index in range(min(len(numbers), MAX_DOMAIN_SAMPLES))]


def report_domain(metadata: DetectorMetadata, say: Callable[[str], None]) -> None:
    """Log the coverage of the training domain, and any leak of the training set."""
    if metadata.domain is not None:
        coverage = metadata.domain.tried["as they are"]
        say(
            f"{coverage['value']:.1%} of the samples of test people are within the training "
            "domain; others are reported as inconclusive"
        )
    if leak := metadata.audit.get("leak"):
        say(
            f"the training set leaks: {leak}: the metrics measure that, and check reports all "
            "results of this detector as inconclusive"
        )


_RANDOM_NETWORKS = 5  # one random network points to the center, another to a corner


_FORGED_SHARE = 0.1  # of a mask's maximum: threshold of a forged pixel


@dataclass(frozen=True)
class PointingGame:
    """Share of forged faces whose heatmap maximum lies on the forged region.

    ``chance`` is the forged share of the images; ``random_weights`` the hit rate of the same
    network with reinitialized weights and reestimated batch statistics, the mean of five;
    ``middle`` the hit rate of always pointing to the center, where faces are; ``n`` the number of
    faces.
    """

    hits: float
    chance: float
    random_weights: float
    n: int
    middle: float = 0.0


def run_pointing_game(
    detector: TrainedDetector, trial: ValidationSet, *, seed: int = 0
) -> PointingGame:
    """Run the pointing game on the forged faces of a validation set.

    Args:
        detector: Detector of the heatmaps.
        trial: Images with masks.
        seed: Seed of the random weights.
    """
    forged = [index for index, label in enumerate(trial.labels) if label]
    images = [trial.images[index] for index in forged]
    side, pixels = detector.metadata.size, detector.metadata.pixels
    window = center_window(side, pixels, preserve_pixels=detector.metadata.method.preserve_pixels)
    masks = [
        _threshold_mask(cut_window(_resize_mask(trial.masks[index], side), window, pixels))
        for index in forged
    ]
    planes = to_channels_first([detector.preprocess(image) for image in images])
    shown = torch.from_numpy(planes).to(detector.device)
    controls = [
        TrainedDetector(
            reestimate_batch_norm(randomize_weights(detector.network, weight_seed), shown),
            detector.metadata,
        )
        for weight_seed in range(_RANDOM_NETWORKS * seed, _RANDOM_NETWORKS * (seed + 1))
    ]
    return PointingGame(
        _measure_hit_rate(compute_heatmaps(detector, images), masks),
        float(np.mean([mask.mean() for mask in masks])),
        float(
            np.mean(
                [
                    _measure_hit_rate(compute_heatmaps(control, images), masks)
                    for control in controls
                ]
            )
        ),
        len(masks),
        float(np.mean([mask[pixels // 2, pixels // 2] for mask in masks])),
    )


def randomize_weights(network: DetectorNetwork, seed: int) -> DetectorNetwork:
    """Return a copy of a network with all layers reinitialized."""
    fresh = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in fresh.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh


def reestimate_batch_norm(network: DetectorNetwork, images: torch.Tensor) -> DetectorNetwork:
    """Reestimate the batch norm statistics of a network in place, and return it.

    Without it, reinitialized weights suppress all signals, and all images look the same.
    """
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in norms:
        part.reset_running_stats()
        part.momentum = None  # the mean over all images
        part.train()
    with torch.no_grad():
        for batch in torch.tensor_split(images, -(-len(images) // HEATMAP_BATCH_SIZE)):
            network.forward_features(batch)
    return network.eval()


def _resize_mask(mask: Mask, side: int) -> Mask:
    if mask.shape[0] == side:
        return mask
    return np.asarray(cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _threshold_mask(mask: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    values = np.asarray(mask, dtype=np.float32)
    return np.asarray(values > _FORGED_SHARE * max(float(values.max()), 1e-6))


def _measure_hit_rate(maps: Heatmaps, masks: Sequence[npt.NDArray[np.bool_]]) -> float:
    """Return the share of heatmaps with their maximum on a forged pixel; ties share the hit."""
    shares = [
        float(mask[heatmap >= heatmap.max() - 1e-7].mean())
        for heatmap, mask in zip(maps, masks, strict=True)
    ]
    return float(np.mean(shares))


def measure_calibration(
    logits: npt.NDArray[np.float64], calibrator: Calibrator, labels: Sequence[int]
) -> dict[str, Any]:
    """Return calibration error and Brier score of test scores, before and after calibration."""
    metrics = {}
    for name, candidate in (("before", Calibrator("none")), ("after", calibrator)):
        chances = candidate.chances(logits)
        metrics[name] = {
            "calibration_error": expected_calibration_error(labels, chances, equal_mass=True),
            "brier": brier_score(labels, chances),
        }
    return {"calibration": metrics}
