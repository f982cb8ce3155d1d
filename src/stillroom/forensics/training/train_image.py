"""Image detector training: identity splits, on-the-fly forgeries, and calibration.

No fake leaves memory. Test faces are used once, at the end, for the metrics of the model card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stillroom.forensics.benchmark.audit import BenchmarkAudit, audit_pairs
from stillroom.forensics.extras import require_packages
from stillroom.forensics.inference.calibration import Calibrator, fit_calibrator
from stillroom.forensics.inference.domain import TrainingDomain, is_grayscale
from stillroom.forensics.inference.trained_detector import (
    DetectorMetadata,
    TrainedDetector,
    load_initial_weights,
    write_detector,
)
from stillroom.forensics.interfaces import ImageForgery
from stillroom.forensics.media.face import Face
from stillroom.forensics.networks.interfaces import DetectorNetwork
from stillroom.forensics.recipe import ForensicsRecipe
from stillroom.forensics.settings import DetectorSettings
from stillroom.forensics.synthesis.faces import FaceSource, open_faces, split_identities
from stillroom.forensics.training.model_card import write_image_model_card
from stillroom.forensics.training.pairs import (
    BenchmarkForgery,
    DetectorBatch,
    PairDataset,
    open_benchmark_pairs,
)
from stillroom.forensics.training.validation import (
    IMAGE_CONDITIONS,
    LabeledSamples,
    ValidationSet,
    apply_perturbation,
    describe_training_set,
    find_operating_limits,
    fit_domain,
    make_image_perturbation,
    make_validation_set,
    measure_calibration,
    measure_conditions,
    report_domain,
    select_evenly,
    summarize_face_files,
)
from stillroom.jobs import Job
from stillroom.models.local.causal_lm import choose_device
from stillroom.provenance import Artifact, Parent, make_parent
from stillroom.records import Link, Origin
from stillroom.train.loop import Loss, train
from stillroom.train.precision import limit_threads

__all__ = [
    "FaceSplits",
    "evaluate_detector",
    "fit_network",
    "split_faces",
    "train_detector",
]


_VALIDATION_REPEATS = 2


@dataclass(frozen=True)
class FaceSplits:
    """All faces, and the indices of the train, validation and test splits.

    ``name`` is the name of the set; ``audit`` that of its files, None where fakes are made here.
    """

    every: tuple[Face, ...]
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    name: str
    audit: BenchmarkAudit | None = None

    def of(self, numbers: Sequence[int]) -> list[Face]:
        """Return faces by index."""
        return [self.every[number] for number in numbers]


def train_detector(recipe: ForensicsRecipe, job: Job) -> Artifact:
    """Train the recipe's detector and publish its checkpoint.

    Raises:
        DataError: If there are too few faces, or no consent for them.
        MissingExtraError: If a package of the detector is not installed.
        Cancelled: If the user stopped it; ``--resume`` continues to the same bytes.
    """
    settings = _require_settings(recipe)
    if recipe.sound is not None:
        from stillroom.forensics.training.train_audio import train_audio_detector

        return train_audio_detector(recipe, recipe.sound, job)
    require_packages("cv2", "PIL", "av")
    forgeries, faces, face_details = _open_faces(recipe, job)
    job.say(
        f"{len(faces.train)} faces for training, {len(faces.validation)} for validation, "
        f"{len(faces.test)} for the test; no person is in two of these"
    )
    with limit_threads(settings.train.threads):
        network, trained = fit_network(recipe, faces, forgeries, job)
        detector, figures = evaluate_detector(
            recipe, network, faces, forgeries, str(face_details["faces"]), job
        )
        fingerprint = write_detector(job.output, network, detector.metadata)
    write_image_model_card(job.output, detector.metadata, figures, recipe.faces)
    _report(figures, detector.metadata, job)
    parents = _list_parents(recipe, job)
    return job.finish(
        "checkpoint",
        parents=parents,
        origin=Origin("synthetic")
        .then(Link(f"forensics.detectors.{settings.model.method_name()}"))
        .to_json(),
        details={
            "detector": detector.metadata.to_json(),
            "train": trained,
            "fingerprint": fingerprint,
            **face_details,
        },
    )


def _open_faces(
    recipe: ForensicsRecipe, job: Job
) -> tuple[list[ImageForgery], FaceSplits, dict[str, str | int]]:
    """Return the forgeries, the faces, and the recorded origin of the faces."""
    settings = _require_settings(recipe)
    if settings.known is not None:
        benchmark = open_benchmark_pairs(
            Path(settings.known.manifest), recipe.size, recipe.faces.margin, job.say
        )
        parts = benchmark.splits
        faces = FaceSplits(
            *(benchmark.faces, parts["train"], parts["validation"], parts["test"]),
            benchmark.name,
            benchmark.audit,
        )
        origin = f"a benchmark's, {settings.known.basis}"
        return (
            [benchmark.pairs],
            faces,
            {"faces": origin, "consent": "", "left_out": benchmark.left_out},
        )
    forgeries = [recipe.method, *settings.also]
    bases = open_faces(
        recipe.faces,
        [method.method_name() for method in forgeries],
        seed=recipe.seed,
        count=max(recipe.count, 2),
        size=recipe.size,
        say=job.say,
    )
    face_details: dict[str, str | int] = {
        "faces": bases.origin,
        "consent": bases.consent,
        "left_out": bases.left_out,
    }
    return forgeries, split_faces(bases, recipe), face_details


def split_faces(bases: FaceSource, recipe: ForensicsRecipe) -> FaceSplits:
    """Assign faces to splits; a hash of the name assigns each person to one split.

    Raises:
        DataError: If a split is empty.
    """
    every = tuple(bases[number] for number in range(len(bases)))
    numbers_by_split = split_identities([face.identity for face in every], recipe, "faces")
    train, validation, test = (
        tuple(numbers_by_split[part]) for part in ("train", "validation", "test")
    )
    folder = recipe.faces.folder
    name = Path(folder).resolve().name if folder else "drawn faces"
    return FaceSplits(every, train, validation, test, name)


def fit_network(
    recipe: ForensicsRecipe, faces: FaceSplits, forgeries: Sequence[ImageForgery], job: Job
) -> tuple[DetectorNetwork, dict[str, Any]]:
    """Return the trained network, and a summary of the training."""
    settings = _require_settings(recipe)
    device = choose_device("auto")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = settings.model.build(settings.pixels)
    load_initial_weights(settings, network)
    network.to(device)
    teacher = TrainedDetector.open(Path(settings.teacher)) if settings.teacher else None
    source = PairDataset(
        faces.of(faces.train), forgeries, settings, seed=recipe.seed, device=device
    )

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
        update={"batch_size": min(settings.train.batch_size, len(faces.train))}
    )
    summary = train(network, source, objective, fit.to_train(), job, seed=recipe.seed)
    return network.eval(), asdict(summary)


def evaluate_detector(
    recipe: ForensicsRecipe,
    network: DetectorNetwork,
    faces: FaceSplits,
    forgeries: Sequence[ImageForgery],
    origin: str,
    job: Job,
) -> tuple[TrainedDetector, dict[str, Any]]:
    """Calibrate and bound a network on validation faces, then measure it once on test faces."""
    settings = _require_settings(recipe)
    frames = settings.model.num_frames
    metadata = DetectorMetadata(
        settings.model,
        settings.pixels,
        recipe.size,
        recipe.faces.margin,
        Calibrator("none"),
        _list_generators(forgeries),
        origin,
    )
    with job.phase("prove", 4, "steps") as progress:
        detector = TrainedDetector(network, metadata)
        # Second faces of swaps come from the same split: no person is in two.
        validation = make_validation_set(
            faces.of(faces.validation),
            forgeries,
            seed=recipe.seed,
            repeats=_VALIDATION_REPEATS,
            frames=frames,
        )
        calibrator = fit_calibrator(
            settings.calibration, validation.labels, detector.logits(validation.images)
        )
        progress.advance()
        least_face, least_quality, works = find_operating_limits(detector, validation)
        progress.advance()
        test = make_validation_set(
            faces.of(faces.test), forgeries, seed=recipe.seed + 1, frames=frames
        )
        figures = {"auc": measure_conditions(detector, test)}
        figures |= measure_calibration(detector.logits(test.images), calibrator, test.labels)
        figures["faces"] = {
            "train": len(faces.train),
            "validation": len(faces.validation),
            "test": len(faces.test),
        }
        progress.advance()
        metadata = replace(
            metadata,
            calibrator=calibrator,
            least_face=least_face,
            least_quality=least_quality,
            is_validated=works and not settings.shuffle_labels,
            figures=figures,
            network_config=network.config,
            training_set=describe_training_set(faces.name, faces.every),
        )
        training_sample = make_validation_set(
            faces.of(select_evenly(faces.train)), forgeries, seed=recipe.seed + 2, frames=frames
        )
        trials = {"train": training_sample, "validation": validation, "test": test}
        domain = _fit_training_domain(
            TrainedDetector(network, metadata), trials, faces, settings, recipe.seed
        )
        metadata = replace(
            metadata, domain=domain, audit=_audit(faces, training_sample, recipe.seed)
        )
        progress.advance()
    return TrainedDetector(network, metadata), figures


def _fit_training_domain(
    detector: TrainedDetector,
    trials: Mapping[str, ValidationSet],
    faces: FaceSplits,
    settings: DetectorSettings,
    seed: int,
) -> TrainingDomain:
    """Fit the training domain for out-of-domain detection."""
    metadata, train = detector.metadata, trials["train"]
    fakes = [image for image, label in zip(train.images, train.labels, strict=True) if label]
    works = (metadata.figures["auc"]["h264"]["low"] or 0) > 0.5
    return fit_domain(
        detector,
        {
            name: LabeledSamples(part.images, part.labels, part.groups)
            for name, part in trials.items()
        },
        summarize_face_files(faces.of(faces.train), fakes, jpeg=settings.views.jpeg),
        make_image_perturbation(metadata.least_quality, metadata.least_face / metadata.size),
        code=(lambda image, _: apply_perturbation(IMAGE_CONDITIONS["h264"], image))
        if works
        else None,
        seed=seed,
    )


def _audit(faces: FaceSplits, training_sample: ValidationSet, seed: int) -> dict[str, Any]:
    """Return the audit of a benchmark's files, else of the pairs made here."""
    if faces.audit is not None:
        return {"of": "files", **faces.audit.summary()}
    traits = [
        {"size": str(image.shape), "colours": "grey" if is_grayscale(image) else "colour"}
        for image in training_sample.images
    ]
    return {
        "of": "pairs made in memory",
        **audit_pairs(traits, training_sample.labels, training_sample.groups, seed=seed).summary(),
    }


def _list_generators(forgeries: Sequence[ImageForgery]) -> tuple[str, ...]:
    """Return the names of the forgery methods, or of a benchmark's generators."""
    names: list[str] = []
    for method in forgeries:
        names += method.names if isinstance(method, BenchmarkForgery) else [method.method_name()]
    return tuple(dict.fromkeys(names))


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


def _require_settings(recipe: ForensicsRecipe) -> DetectorSettings:
    if recipe.detector is None:
        raise TypeError("the recipe trains no detector")
    return recipe.detector


def _list_parents(recipe: ForensicsRecipe, job: Job) -> list[Parent]:
    settings = _require_settings(recipe)
    paths = {
        "faces": recipe.faces.folder,
        "start": settings.start,
        "teacher": settings.teacher,
        "benchmark": settings.known.manifest if settings.known else None,
    }
    return [make_parent(role, Path(path), job.out) for role, path in paths.items() if path]


def _report(figures: dict[str, Any], metadata: DetectorMetadata, job: Job) -> None:
    clean = figures["auc"]["clean"]
    job.say(
        f"area under the curve on unseen people: {clean['value']:.3f} "
        f"[{clean['low'] or 0:.3f}, {clean['high'] or 1:.3f}]; validated down to face crops of "
        f"{metadata.least_face} pixels and JPEG {metadata.least_quality}"
    )
    report_domain(metadata, job.say)
    if not metadata.is_validated:
        job.say(
            "its performance on validation faces is not above chance: check will report all its "
            "results as inconclusive"
        )
