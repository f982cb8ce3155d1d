"""Detector training: identity splits, on-the-fly forgeries, and calibration.

The loop is the same for images and audio; ``ModalityData`` holds what differs. No fake leaves
memory. Test samples are used once, at the end, for the metrics of the model card.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stillroom.checkpoints.card import write_card
from stillroom.evaluate.report import open_templates
from stillroom.forensics.benchmark.audit import audit_pairs
from stillroom.forensics.inference.domain import FileTraits
from stillroom.forensics.inference.results import Calibrator, fit_calibrator
from stillroom.forensics.inference.trained_detector import (
    DetectorMetadata,
    TrainedDetector,
    load_initial_weights,
    write_detector,
)
from stillroom.forensics.modalities.interfaces import Modality, Perturbation
from stillroom.forensics.networks.interfaces import DetectorNetwork
from stillroom.forensics.training.pairs import DetectorBatch, PairDataset
from stillroom.forensics.training.validation import (
    LabeledSamples,
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

if TYPE_CHECKING:
    from stillroom.forensics.jobs.image_detector import TeacherSettings
    from stillroom.forensics.training.pairs import DetectorRecipe

__all__ = [
    "ModalityData",
    "describe_source",
    "train_detector",
]

_VALIDATION_REPEATS = 2


@dataclass(frozen=True, eq=False)
class ModalityData(ABC):
    """The samples of a training, and all that is specific to their modality.

    ``samples`` are all faces or waveforms, and ``splits`` their indices by split; ``generators``
    are the names of the forgeries; ``name`` is the name of the set, and ``parents`` the folders
    and files that it was read from, by role; ``origin`` is what is declared of the people.
    """

    recipe: DetectorRecipe
    modality: Modality
    samples: Sequence[Any]
    splits: Mapping[str, Sequence[int]]
    forgeries: Sequence[Any]
    generators: tuple[str, ...]
    name: str
    parents: Mapping[str, str]
    origin: str
    basis: str = ""
    consent: str = ""
    num_skipped: int = 0

    nouns: ClassVar[tuple[str, str, str]]  # samples, one identity, several
    pairs: ClassVar[type[PairDataset]]

    def split(self, name: str) -> list[Any]:
        """Return the samples of a split."""
        return [self.samples[number] for number in self.splits[name]]

    def audit_traits(
        self, traits: Sequence[Mapping[str, Any]], training_sample: LabeledSamples
    ) -> dict[str, Any]:
        """Return the audit of pairs that are made in memory."""
        labels, groups = training_sample.labels, training_sample.groups
        audit = audit_pairs(traits, labels, groups, seed=self.recipe.seed)
        return {"of": "pairs made in memory", **audit.summary()}

    @property
    def set_faults(self) -> tuple[str, ...]:
        """What is wrong with the files of the set, known before time is spent on it."""
        return ()

    @abstractmethod
    def forge(self, samples: Sequence[Any], seed: int, repeats: int = 1) -> LabeledSamples:
        """Forge some samples deterministically, and return them with their real twins."""

    @abstractmethod
    def find_limits(
        self, detector: TrainedDetector, validation: LabeledSamples
    ) -> tuple[Modality, bool]:
        """Return the input with its validated limits, and whether the detector works."""

    @abstractmethod
    def summarize_files(self, training_sample: LabeledSamples) -> FileTraits:
        """Summarize the traits of the training files."""

    @abstractmethod
    def make_perturbations(
        self, metadata: DetectorMetadata, read: Any
    ) -> tuple[Perturbation, Perturbation | None]:
        """Return a random perturbation within the limits, and video encoding where it works."""

    @abstractmethod
    def audit(self, training_sample: LabeledSamples) -> dict[str, Any]:
        """Return the audit of the training set."""


def describe_source(source: Any, role: str) -> dict[str, Any]:
    """Return name, parents and basis of a set by the settings of its source."""
    folder = getattr(source, "folder", None)
    return {
        "name": Path(folder).resolve().name if folder else f"drawn {role}",
        "parents": {role: folder} if folder else {},
        "basis": getattr(source, "basis", ""),
    }


def train_detector(data: ModalityData, job: Job) -> Artifact:
    """Train a detector and publish its checkpoint.

    Raises:
        Cancelled: If the user stopped it; ``--resume`` continues to the same bytes.
    """
    recipe, (noun, person, people) = data.recipe, data.nouns
    sizes = {name: len(numbers) for name, numbers in data.splits.items()}
    job.say(
        f"{sizes['train']} {noun} for training, {sizes['validation']} for validation, "
        f"{sizes['test']} for the test; no {person} is in two of these"
    )
    for fault in data.set_faults:
        job.warn(fault)
    with limit_threads(recipe.train.threads):
        network, trained = _fit_network(data, job)
        detector = _evaluate_detector(data, network, job)
        fingerprint = write_detector(job.output, network, detector.metadata)
    metadata = detector.metadata
    _write_model_card(job.output, metadata, data.basis)
    clean = metadata.metrics["auc"]["clean"]
    job.say(
        f"area under the curve on unseen {people}: {clean['value']:.3f} "
        f"[{clean['low'] or 0:.3f}, {clean['high'] or 1:.3f}]{metadata.modality.limits()}"
    )
    report_domain(metadata, job)
    if not metadata.is_validated:
        job.warn(
            f"its performance on validation {noun} is not above chance: check will report all its "
            "results as inconclusive"
        )
    teacher = _teacher_of(recipe)
    parents = {
        **data.parents,
        "initial_weights": recipe.initial_weights,
        "teacher": teacher.checkpoint if teacher else None,
    }
    link = Link(f"forensics.{metadata.modality.name}_detectors.{recipe.model.method_name()}")
    return job.finish(
        "checkpoint",
        parents=[make_parent(role, Path(path), job.out) for role, path in parents.items() if path],
        origin=Origin("synthetic").then(link).to_json(),
        details={
            "detector": metadata.to_json(),
            "train": trained,
            "fingerprint": fingerprint,
            data.modality.subject: data.origin,
            "consent": data.consent,
            "num_skipped": data.num_skipped,
        },
    )


def _teacher_of(recipe: DetectorRecipe) -> TeacherSettings | None:
    """Return the teacher of a recipe; audio detectors have none."""
    teacher: TeacherSettings | None = getattr(recipe, "teacher", None)
    return teacher


def _fit_network(data: ModalityData, job: Job) -> tuple[DetectorNetwork, dict[str, Any]]:
    """Return the trained network, and a summary of the training."""
    recipe, samples = data.recipe, data.split("train")
    device = choose_device("auto")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = recipe.model.build(data.modality.input_size)
    if recipe.initial_weights is not None:
        load_initial_weights(Path(recipe.initial_weights), recipe.model, network)
    network.to(device)
    distillation = _teacher_of(recipe)
    teacher = TrainedDetector.open(Path(distillation.checkpoint)) if distillation else None
    source = data.pairs(samples, data.forgeries, recipe, device)

    def objective(model: nn.Module, batch: DetectorBatch) -> Loss:
        if not isinstance(model, DetectorNetwork):
            raise TypeError("the model is not a DetectorNetwork")
        judged = model.forward_features(batch.inputs)
        total, parts = model.loss(judged, batch.labels, batch.masks)
        if teacher is None or distillation is None:
            return Loss(total, parts)
        targets = _predict_teacher(teacher, batch)
        gap = functional.binary_cross_entropy_with_logits(judged.logits, targets, reduction="sum")
        share = distillation.weight
        return Loss((1 - share) * total + share * gap, {**parts, "teacher": float(gap.detach())})

    fit = recipe.train.model_copy(update={"batch_size": min(recipe.train.batch_size, len(samples))})
    summary = train(
        network, source, objective, fit.to_train(), job, seed=recipe.seed, unit="inputs"
    )
    return network.eval(), asdict(summary)


def _evaluate_detector(data: ModalityData, network: DetectorNetwork, job: Job) -> TrainedDetector:
    """Calibrate and bound a network on validation samples, then measure it once on test samples."""
    recipe, seed = data.recipe, data.recipe.seed
    metadata = DetectorMetadata(
        *(recipe.model, data.modality, Calibrator("none"), data.generators, data.origin),
        network_config=network.config,
        training_set=describe_training_set(data.name, data.samples),
    )
    detector = TrainedDetector(network, metadata)
    with job.phase("evaluate", 4, "steps") as progress:
        # Second samples of a forgery come from the same split: no person is in two.
        validation = data.forge(data.split("validation"), seed, _VALIDATION_REPEATS)
        calibrator = fit_calibrator(
            recipe.calibration, validation.labels, detector.logits(validation.samples)
        )
        progress.advance()
        read, works = data.find_limits(detector, validation)
        progress.advance()
        test = data.forge(data.split("test"), seed + 1)
        metrics: dict[str, Any] = {
            "auc": {
                name: test.measure(detector, change, name).to_json()
                for name, change in data.modality.conditions.items()
            }
        }
        metrics |= measure_calibration(detector.logits(test.samples), calibrator, test.labels)
        metrics[data.modality.subject] = {
            name: len(numbers) for name, numbers in data.splits.items()
        }
        progress.advance()
        metadata = replace(
            metadata,
            modality=read,
            calibrator=calibrator,
            is_validated=works and not recipe.shuffle_labels,
            metrics=metrics,
        )
        selected = [data.samples[number] for number in select_evenly(data.splits["train"])]
        training_sample = data.forge(selected, seed + 2)
        change, code = data.make_perturbations(metadata, read)
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
    side = teacher.image_input.image_size
    images = batch.inputs
    if images.shape[-1] != side:
        images = functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    with torch.no_grad():
        logits = teacher.network(images)
    chances = teacher.metadata.calibrator.chances(np.asarray(logits.double().cpu().numpy()))
    return torch.from_numpy(chances).to(logits)


_CONDITION_LABELS = {
    "clean": "as they are",
    "jpeg70": "after JPEG 70",
    "jpeg40": "after JPEG 40",
    "half": "at half their size and back",
    "noise8": "with noise of deviation 8",
    "h264": "after H.264 at a rate factor of 28",
    "mp3_64": "after MP3 at 64 kbit/s",
    "aac_64": "after AAC at 64 kbit/s",
    "noise20": "with noise 20 dB below",
    "telephone": "in a telephone's band, below 4 kHz",
    "blur": "blurred (sigma 1.5 at 224 pixels)",
}
_BLIND_BELOW = 0.6


_WORDS = {
    "image": {
        "forged": "Forgeries made on the fly",
        "samples": "faces",
        "person": "person",
        "tested": "faces",
        "people": "people",
        "media": "pictures",
        "scored": "faces",
        "real": "photographs",
    },
    "audio": {
        "forged": "Sounds forged on the fly",
        "samples": "sounds",
        "person": "speaker",
        "tested": "speakers",
        "people": "speakers",
        "media": "sounds",
        "scored": "sounds",
        "real": "recordings",
    },
}
"""Words of the card by modality; ``tested`` are what intervals are over."""


def _write_model_card(folder: Path, meta: DetectorMetadata, basis: str = "") -> None:
    """Write README.md beside the weights."""
    name, modality, metrics = meta.method.method_name(), meta.modality, meta.metrics
    templates = open_templates("stillroom.forensics.training", is_html=False)
    templates.filters["number"] = lambda value: "none" if value is None else f"{value:.3f}"
    body = templates.get_template("model_card.md").render(
        meta=meta,
        modality=modality,
        domain=meta.domain,
        words=_WORDS[modality.name],
        counts=metrics[modality.subject],
        areas=metrics["auc"],
        conditions=_CONDITION_LABELS,
        blind_below=_BLIND_BELOW,
        basis=basis,
        **metrics["calibration"],
    )
    write_card(
        folder,
        f"Detector {name} of {', '.join(meta.trained_on)}",
        body,
        tags=["forgery-detection", name],
        fields={"library_name": "stillroom", "pipeline_tag": f"{modality.name}-classification"},
    )
