"""Detector training: identity splits, on-the-fly forgeries, and calibration.

The loop is the same for images and audio; ``ModalityData`` holds what differs. No fake leaves
memory. Test samples are used once, at the end, for the metrics of the model card.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stillroom.checkpoints.card import write_card
from stillroom.forensics.benchmark.audit import audit_pairs
from stillroom.forensics.inference.domain import FileTraits
from stillroom.forensics.inference.results import Calibrator, fit_calibrator
from stillroom.forensics.inference.trained_detector import (
    DetectorMetadata,
    TrainedDetector,
    load_initial_weights,
    write_detector,
)
from stillroom.forensics.modalities.audio import AudioModality
from stillroom.forensics.modalities.image import ImageModality
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
    "evaluate_detector",
    "fit_network",
    "train_detector",
    "write_model_card",
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
    with limit_threads(recipe.train.threads):
        network, trained = fit_network(data, job)
        detector = evaluate_detector(data, network, job)
        fingerprint = write_detector(job.output, network, detector.metadata)
    metadata = detector.metadata
    write_model_card(job.output, metadata, data.basis)
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


def fit_network(data: ModalityData, job: Job) -> tuple[DetectorNetwork, dict[str, Any]]:
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


def evaluate_detector(data: ModalityData, network: DetectorNetwork, job: Job) -> TrainedDetector:
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


class _Words(NamedTuple):
    """Words of one modality; ``tested`` are what intervals are over."""

    forged: str
    samples: str
    person: str
    tested: str
    people: str
    media: str
    scored: str
    real: str


_WORDS = {
    "image": _Words(
        *("Forgeries made on the fly", "faces", "person", "faces", "people", "pictures", "faces"),
        "photographs",
    ),
    "audio": _Words(
        *("Sounds forged on the fly", "sounds", "speaker", "speakers", "speakers", "sounds"),
        *("sounds", "recordings"),
    ),
}


def write_model_card(folder: Path, meta: DetectorMetadata, basis: str = "") -> None:
    """Write README.md beside the weights."""
    name, modality = meta.method.method_name(), meta.modality
    write_card(
        folder,
        f"Detector {name} of {', '.join(meta.trained_on)}",
        "\n".join([*_describe_training(meta, basis), *_describe_metrics(meta)]),
        tags=["forgery-detection", name],
        fields={"library_name": "stillroom", "pipeline_tag": f"{modality.name}-classification"},
    )


def _describe_training(meta: DetectorMetadata, basis: str) -> list[str]:
    """Return lines on training data and known limits."""
    words, modality = _WORDS[meta.modality.name], meta.modality
    count = meta.metrics[modality.subject]
    lines = [
        f"Paper: {meta.method.paper}. A higher score is forged. {_describe_input(meta)}",
        "",
        "## What it learned",
        "",
        f"{words.forged} by {', '.join(meta.trained_on)} from {count['train']} {words.samples} "
        f"({basis or meta.source}); calibrated on {count['validation']}, tested on "
        f"{count['test']}. No {words.person} is in two of these.",
        *_describe_training_domain(meta),
        "",
        "## Where it is blind",
        "",
        *[f"- {line}" for line in [*meta.limitations, *_describe_blind_spots(meta.metrics)]],
    ]
    if not meta.is_validated:
        lines.append(
            f"- On validation {words.tested} the interval of its area under the curve reaches 0.5: "
            "it was not shown to tell forged from real, and all it says is called inconclusive."
        )
    if meta.source.startswith("drawn"):
        lines.append(
            f"- It learned from drawn {modality.subject}: of {words.real} its scores say nothing."
        )
    return lines


def _describe_input(meta: DetectorMetadata) -> str:
    if isinstance(meta.modality, AudioModality):
        rate = meta.modality.sample_rate
        return f"It hears {meta.modality.seconds:.2f} s at {rate} samples a second."
    side = meta.modality.input_size
    return f"It looks at {side} x {side} pixels of a square about each face."


def _describe_metrics(meta: DetectorMetadata) -> list[str]:
    """Return lines on the metrics of test people, and on the validated conditions."""
    words, modality, metrics = _WORDS[meta.modality.name], meta.modality, meta.metrics
    lines = [
        *("", "## What was measured", ""),
        f"Area under the curve on test {words.tested}, with a 95 % interval over {words.people}; "
        f"what is done to {words.media} is done to real and forged alike.",
        *("", f"| {words.media} | area | interval | n |", "|---|---|---|---|"),
        *[_row(_CONDITION_LABELS[name], metric) for name, metric in metrics["auc"].items()],
        "",
        f"Calibration ({meta.calibrator.method}, {meta.calibrator.n} validation {words.media}), "
        f"error and Brier score on test {words.scored}: "
        f"{_chances(metrics['calibration']['before'])} before, "
        f"{_chances(metrics['calibration']['after'])} after.",
    ]
    if isinstance(modality, ImageModality):
        lines += [
            "",
            f"Judgements are withheld below {modality.min_face_size / modality.face_margin:.0f} "
            f"pixels of face and below JPEG quality {modality.min_jpeg_quality}: further down less "
            "than 70 % of what it has above chance was left on validation faces.",
        ]
    return lines


def _describe_training_domain(meta: DetectorMetadata) -> list[str]:
    """Return lines on the training set, its audit, and out-of-domain detection."""
    lines = ["", f"The set: {meta.training_set.line()} (of {meta.training_set.digest})."]
    audit = meta.audit
    if audit:
        metric = audit["by_file"]
        finding = audit["leak"] or "what is no trace of a forgery does not tell fake from real"
        lines += [
            "",
            f"Audit of the {audit['of']}: {finding}; area {_number(metric['value'])}, 95 % "
            f"{_number(metric['low'])} to {_number(metric['high'])}, n {metric['n']}; "
            f"{audit['near_duplicates']} near duplicates in two splits, {audit['unread']} files "
            "not read.",
        ]
        if audit["leak"]:
            lines += ["", "**The set leaks. All that this detector says is called inconclusive.**"]
    if meta.domain is None:
        return lines
    tried = meta.domain.tried
    lines += [
        "",
        "## What it knows",
        "",
        "What is unlike what it learned from is called inconclusive: by colors, size and coding "
        f"of the file, and by distances in: {', '.join(meta.domain.clouds)}. "
        f"Limits are set on {meta.domain.people} people for {meta.domain.rate:.0%} "
        "of what known people show. Of what test people show, within the limits are:",
        *("", "| seen | within | interval over people | real | forged |", "|---|---|---|---|---|"),
        *[
            f"| {name} | {row['value']:.3f} | {_number(row['low'])} to {_number(row['high'])} | "
            f"{row['real']:.3f} | {row['forged']:.3f} |"
            for name, row in tried.items()
        ],
    ]
    known = meta.domain.known
    if known.codings:
        lines += ["", f"Its files were coded as: {', '.join(known.codings)}."]
    if known.colors:
        lines += ["", f"Its pictures were: {' and '.join(known.colors)}."]
    return lines


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _describe_blind_spots(metrics: Mapping[str, Any]) -> list[str]:
    return [
        f"Measured: {_CONDITION_LABELS[name]} its area is {metric['value']:.2f}, which is "
        "little or nothing."
        for name, metric in metrics["auc"].items()
        if metric["value"] is not None and metric["value"] < _BLIND_BELOW
    ]


def _row(name: str, metric: Mapping[str, Any]) -> str:
    if metric["low"] is None:
        return (
            f"| {name} | {metric['value']:.3f} | none: {metric.get('note', '')} | {metric['n']} |"
        )
    return (
        f"| {name} | {metric['value']:.3f} | {metric['low']:.3f} to {metric['high']:.3f} | "
        f"{metric['n']} |"
    )


def _chances(values: Mapping[str, float]) -> str:
    return f"{values['calibration_error']:.3f} and {values['brier']:.3f}"
