"""Detector training: identity splits, on-the-fly forgeries, and calibration.

The loop is the same for images and audio; ``ModalityData`` holds what differs. No fake leaves
memory. Test samples are used once, at the end, for the metrics of the model card.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stillroom.forensics.inference.calibration import Calibrator, fit_calibrator
from stillroom.forensics.inference.domain import FileTraits
from stillroom.forensics.inference.trained_detector import (
    DetectorMetadata,
    TrainedDetector,
    load_initial_weights,
    write_detector,
)
from stillroom.forensics.networks.interfaces import DetectorNetwork
from stillroom.forensics.settings import DetectorSettings
from stillroom.forensics.training.pairs import DetectorBatch, PairDataset
from stillroom.forensics.training.validation import (
    LabeledSamples,
    Perturbation,
    describe_training_set,
    fit_domain,
    measure_calibration,
    report_domain,
    select_evenly,
)
from stillroom.jobs import Job
from stillroom.models.local.causal_lm import choose_device
from stillroom.provenance import Artifact, make_parent
from stillroom.records import Link, Origin
from stillroom.train.loop import Loss, train
from stillroom.train.precision import limit_threads

__all__ = ["ModalityData", "evaluate_detector", "fit_network", "train_detector"]

_VALIDATION_REPEATS = 2


@dataclass(frozen=True, eq=False)
class ModalityData(ABC):
    """The samples of a training, and all that is specific to their medium.

    ``samples`` are all faces or waveforms, and ``splits`` their indices by split; ``name`` is the
    name of the set, ``folder`` where it was read, and ``generators`` the names of the forgery
    methods. ``input_size``, ``size`` and ``margin`` are as in ``DetectorMetadata``.
    """

    settings: DetectorSettings
    seed: int
    samples: Sequence[Any]
    splits: Mapping[str, Sequence[int]]
    forgeries: Sequence[Any]
    generators: tuple[str, ...]
    name: str
    folder: str | None
    origin: str
    consent: str
    left_out: int
    input_size: int
    size: int
    margin: float

    role: ClassVar[str]
    nouns: ClassVar[tuple[str, str, str]]  # samples, one identity, several
    pairs: ClassVar[type[PairDataset]]

    def split(self, name: str) -> list[Any]:
        """Return the samples of a split."""
        return [self.samples[number] for number in self.splits[name]]

    @abstractmethod
    def forge(self, samples: Sequence[Any], seed: int, repeats: int = 1) -> LabeledSamples:
        """Forge some samples deterministically, and return them with their real twins."""

    @abstractmethod
    def find_limits(self, detector: TrainedDetector, validation: Any) -> tuple[int, int, bool]:
        """Return the least face crop and JPEG quality, and whether the detector works."""

    @abstractmethod
    def measure_conditions(self, detector: TrainedDetector, test: Any) -> dict[str, Any]:
        """Return the area under the curve under each condition, as JSON-compatible values."""

    @abstractmethod
    def summarize_files(self, training_sample: Any) -> FileTraits:
        """Summarize the traits of the training files."""

    @abstractmethod
    def make_perturbations(
        self, metadata: DetectorMetadata
    ) -> tuple[Perturbation, Perturbation | None]:
        """Return a random perturbation within the limits, and video encoding where it works."""

    @abstractmethod
    def audit(self, training_sample: Any) -> dict[str, Any]:
        """Return the audit of the training set."""

    @abstractmethod
    def write_card(
        self, folder: Path, metadata: DetectorMetadata, figures: Mapping[str, Any]
    ) -> None:
        """Write the model card."""

    def describe_limits(self, metadata: DetectorMetadata) -> str:
        """Return the validated conditions, to be appended to the report's line."""
        return ""


def train_detector(data: ModalityData, job: Job) -> Artifact:
    """Train a detector and publish its checkpoint.

    Raises:
        Cancelled: If the user stopped it; ``--resume`` continues to the same bytes.
    """
    settings, (noun, person, people) = data.settings, data.nouns
    sizes = {name: len(numbers) for name, numbers in data.splits.items()}
    job.say(
        f"{sizes['train']} {noun} for training, {sizes['validation']} for validation, "
        f"{sizes['test']} for the test; no {person} is in two of these"
    )
    with limit_threads(settings.train.threads):
        network, trained = fit_network(data, job)
        detector = evaluate_detector(data, network, job)
        fingerprint = write_detector(job.output, network, detector.metadata)
    metadata = detector.metadata
    data.write_card(job.output, metadata, metadata.figures)
    clean = metadata.figures["auc"]["clean"]
    job.say(
        f"area under the curve on unseen {people}: {clean['value']:.3f} "
        f"[{clean['low'] or 0:.3f}, {clean['high'] or 1:.3f}]{data.describe_limits(metadata)}"
    )
    report_domain(metadata, job.say)
    if not metadata.is_validated:
        job.say(
            f"its performance on validation {noun} is not above chance: check will report all its "
            "results as inconclusive"
        )
    parents = {
        data.role: data.folder,
        "start": settings.start,
        "teacher": settings.teacher,
        "benchmark": settings.known.manifest if settings.known else None,
    }
    return job.finish(
        "checkpoint",
        parents=[make_parent(role, Path(path), job.out) for role, path in parents.items() if path],
        origin=Origin("synthetic")
        .then(Link(f"forensics.detectors.{settings.model.method_name()}"))
        .to_json(),
        details={
            "detector": metadata.to_json(),
            "train": trained,
            "fingerprint": fingerprint,
            data.role: data.origin,
            "consent": data.consent,
            "left_out": data.left_out,
        },
    )


def fit_network(data: ModalityData, job: Job) -> tuple[DetectorNetwork, dict[str, Any]]:
    """Return the trained network, and a summary of the training."""
    settings, samples = data.settings, data.split("train")
    device = choose_device("auto")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data.seed)
        network = settings.model.build(data.input_size)
    load_initial_weights(settings, network)
    network.to(device)
    teacher = TrainedDetector.open(Path(settings.teacher)) if settings.teacher else None
    source = data.pairs(samples, data.forgeries, settings, seed=data.seed, device=device)

    def objective(model: nn.Module, batch: DetectorBatch) -> Loss:
        if not isinstance(model, DetectorNetwork):
            raise TypeError("the model is not a DetectorNetwork")
        judged = model.forward_features(batch.images)
        total, parts = model.loss(judged, batch.labels, batch.masks)
        if teacher is None:
            return Loss(total, parts)
        targets = _predict_teacher(teacher, batch)
        gap = functional.binary_cross_entropy_with_logits(judged.logits, targets, reduction="sum")
        share = settings.teacher_share
        return Loss((1 - share) * total + share * gap, {**parts, "teacher": float(gap.detach())})

    fit = settings.train.model_copy(
        update={"batch_size": min(settings.train.batch_size, len(samples))}
    )
    summary = train(network, source, objective, fit.to_train(), job, seed=data.seed)
    return network.eval(), asdict(summary)


def evaluate_detector(data: ModalityData, network: DetectorNetwork, job: Job) -> TrainedDetector:
    """Calibrate and bound a network on validation samples, then measure it once on test samples."""
    settings, seed = data.settings, data.seed
    metadata = DetectorMetadata(
        *(settings.model, data.input_size, data.size, data.margin, Calibrator("none")),
        *(data.generators, data.origin),
        network_config=network.config,
        training_set=describe_training_set(data.name, data.samples),
    )
    detector = TrainedDetector(network, metadata)
    with job.phase("prove", 4, "steps") as progress:
        # Second samples of a forgery come from the same split: no person is in two.
        validation = data.forge(data.split("validation"), seed, _VALIDATION_REPEATS)
        calibrator = fit_calibrator(
            settings.calibration, validation.labels, detector.logits(validation.samples)
        )
        progress.advance()
        least_face, least_quality, works = data.find_limits(detector, validation)
        progress.advance()
        test = data.forge(data.split("test"), seed + 1)
        figures: dict[str, Any] = {"auc": data.measure_conditions(detector, test)}
        figures |= measure_calibration(detector.logits(test.samples), calibrator, test.labels)
        figures["faces"] = {name: len(numbers) for name, numbers in data.splits.items()}
        progress.advance()
        metadata = replace(
            metadata,
            calibrator=calibrator,
            least_face=least_face,
            least_quality=least_quality,
            is_validated=works and not settings.shuffle_labels,
            figures=figures,
        )
        selected = [data.samples[number] for number in select_evenly(data.splits["train"])]
        training_sample = data.forge(selected, seed + 2)
        change, code = data.make_perturbations(metadata)
        domain = fit_domain(
            TrainedDetector(network, metadata),
            {"train": training_sample, "validation": validation, "test": test},
            data.summarize_files(training_sample),
            change,
            code=code,
            seed=seed,
        )
        metadata = replace(metadata, domain=domain, audit=data.audit(training_sample))
        progress.advance()
    return TrainedDetector(network, metadata)


def _predict_teacher(teacher: TrainedDetector, batch: DetectorBatch) -> torch.Tensor:
    """Return the teacher's probabilities for a batch, (B,), at the teacher's input size."""
    pixels = teacher.metadata.pixels
    images = batch.images
    if images.shape[-1] != pixels:
        images = functional.interpolate(
            images, size=(pixels, pixels), mode="bilinear", antialias=True
        )
    with torch.no_grad():
        logits = teacher.network(images)
    chances = teacher.metadata.calibrator.chances(np.asarray(logits.double().cpu().numpy()))
    return torch.from_numpy(chances).to(logits)
