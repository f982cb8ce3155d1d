"""Validation of a detector: metrics by condition, operating limits and domain.

Metrics are areas under the curve with an interval over people. Perturbations apply to real and
forged images alike.

The domain is fitted on samples that are unchanged, and randomly perturbed within the operating
limits, so that inputs within the limits are not reported as out of domain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.evaluate import Metric, bootstrap
from stillroom.forensics.benchmark.metrics import (
    bootstrap_auc,
    brier_score,
    expected_calibration_error,
)
from stillroom.forensics.inference.domain import (
    FALSE_ALARM_RATE,
    FileTraits,
    TrainingDomain,
    find_distance_limit,
    fit_axes,
    fit_neighbors,
    measure_residuals,
)
from stillroom.forensics.inference.results import Calibrator, TrainingSetInfo
from stillroom.forensics.inference.trained_detector import (
    DetectorMetadata,
    ScoredBatch,
    TrainedDetector,
)
from stillroom.forensics.media.audio import Waveform
from stillroom.forensics.media.face_types import Face, Mask
from stillroom.forensics.modalities.interfaces import Perturbation
from stillroom.jobs import MessageLog
from stillroom.provenance import digest_json

__all__ = [
    "LabeledSamples",
    "describe_training_set",
    "fit_domain",
    "make_labeled_samples",
    "measure_calibration",
    "report_domain",
    "select_evenly",
]


@dataclass(frozen=True, eq=False)
class LabeledSamples:
    """Face crops or waveforms with labels (1 for forged), masks and people; fakes first."""

    samples: tuple[Any, ...]
    labels: tuple[int, ...]
    masks: tuple[Mask, ...]
    groups: tuple[str, ...]

    def measure(self, detector: TrainedDetector, change: Callable[[Any], Any], name: str) -> Metric:
        """Return the area under the curve after a perturbation of all samples."""
        scores = detector.logits([change(sample) for sample in self.samples])
        return bootstrap_auc(self.labels, scores, self.groups, name=name)


ForgeSample = Callable[[int, np.random.Generator], tuple[Any, Any, Mask]]


def make_labeled_samples(
    samples: Sequence[Face | Waveform],
    forge: ForgeSample,
    *,
    seed: int,
    repeats: int = 1,
    stream: int = 0x7E57,
) -> LabeledSamples:
    """Forge some samples deterministically, and return them with their real twins.

    Args:
        samples: Faces or recordings to forge.
        forge: Returns fake, real twin and mask of a sample, by its number.
        seed: Random seed.
        repeats: Number of forgeries per sample; its twins are repeated as often.
        stream: Stream of the random numbers.
    """
    fakes, twins, masks, groups = [], [], [], []
    for number, sample in enumerate(samples):
        for again in range(repeats):
            fake, twin, mask = forge(number, np.random.default_rng([seed, number, again, stream]))
            fakes.append(fake)
            twins.append(twin)
            masks.append(mask)
            groups.append(sample.identity)
    count = len(fakes)
    return LabeledSamples(
        (*fakes, *twins),
        (*[1] * count, *[0] * count),
        (*masks, *[np.zeros_like(mask) for mask in masks]),
        (*groups, *groups),
    )


_MAX_DOMAIN_SAMPLES = 300
"""Maximum number of training faces or waveforms that a domain is fitted on."""


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
        parts: ``train`` is compared with, and sets the limits with ``validation``, each person by
            the distance to others; ``test`` checks them.
        known: Traits of the training files.
        change: Random perturbation within the operating limits.
        code: Video encoding, where the detector was validated on it.
        seed: Random seed.
    """
    rng = np.random.default_rng([seed, 0xD0])
    still = [_leave_unchanged, change, change]
    train, validation = parts["train"], parts["validation"]
    first, _ = _score_perturbed(detector, train, still, rng)
    own = "layers" if "layers" in first.measures else "features"
    rows = first.measures[own]
    clouds = {
        own: fit_axes(rows) if own == "layers" else fit_neighbors(rows),
        "looks": fit_neighbors(first.measures["looks"]),
    }
    domain = TrainingDomain(clouds, detector.metadata.modality.features, known=known)
    fitted = np.array([*train.groups] * len(still))
    limits: dict[str, dict[str, float]] = {}
    kinds = {"still": still, **({} if code is None else {"video": [code]})}
    for kind, changes in kinds.items():
        seen = first if kind == "still" else _score_perturbed(detector, train, changes, rng)[0]
        people = np.array([*train.groups] * len(changes))
        distances = domain.measure(seen.measures, people[:, None] == fitted)
        if own == "layers":
            distances[own] = measure_residuals(
                rows, fitted.tolist(), seen.measures[own], people.tolist()
            )
        unseen, _ = _score_perturbed(detector, validation, changes, rng)
        for name, values in domain.measure(unseen.measures).items():
            distances[name] = np.concatenate([distances[name], values])
        scales = {name: max(float(np.quantile(far, 0.95)), 1e-9) for name, far in distances.items()}
        farthest = np.max([far / scales[name] for name, far in distances.items()], axis=0)
        # One factor for all limits, so that the permitted rate is that of all together.
        groups = [*people.tolist(), *validation.groups * len(changes)]
        factor = find_distance_limit(farthest, groups, FALSE_ALARM_RATE)
        limits[kind] = {name: factor * scale for name, scale in scales.items()}
    people_count = len({*train.groups, *validation.groups})
    domain = replace(domain, limits=limits, people=people_count)
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


def describe_training_set(name: str, samples: Sequence[Face | Waveform]) -> TrainingSetInfo:
    """Return name and digest of a training set: over its files' names and digests, in any order."""
    rows = sorted([sample.name, sample.digest] for sample in samples)
    return TrainingSetInfo(name, digest_json(rows), len(rows))


def select_evenly(numbers: Sequence[int]) -> list[int]:
    """Return at most ``_MAX_DOMAIN_SAMPLES`` numbers, evenly spaced."""
    step = max(len(numbers) / _MAX_DOMAIN_SAMPLES, 1.0)
    return [numbers[int(index * step)] for index in range(min(len(numbers), _MAX_DOMAIN_SAMPLES))]


def report_domain(metadata: DetectorMetadata, log: MessageLog) -> None:
    """Log the coverage of the training domain, and any leak of the training set."""
    if metadata.domain is not None:
        coverage = metadata.domain.tried["as they are"]
        log.say(
            f"{coverage['value']:.1%} of the samples of test people are within the training "
            "domain; others are reported as inconclusive"
        )
    if leak := metadata.audit.get("leak"):
        log.warn(
            f"the training set leaks: {leak}: the metrics measure that, and check reports all "
            "results of this detector as inconclusive"
        )


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
