"""Image detector training: faces, their forgeries, and the conditions of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from stillroom.forensics.benchmark.audit import BenchmarkAudit, audit_pairs
from stillroom.forensics.inference.domain import FileTraits, is_grayscale
from stillroom.forensics.inference.trained_detector import DetectorMetadata, TrainedDetector
from stillroom.forensics.media.face import Face
from stillroom.forensics.recipe import FacesSettings, ForensicsRecipe
from stillroom.forensics.settings import DetectorSettings
from stillroom.forensics.synthesis.faces import open_faces, split_identities
from stillroom.forensics.training.model_card import write_image_model_card
from stillroom.forensics.training.pairs import ImagePairDataset, open_benchmark_pairs
from stillroom.forensics.training.train_detector import ModalityData
from stillroom.forensics.training.validation import (
    IMAGE_CONDITIONS,
    Perturbation,
    ValidationSet,
    apply_perturbation,
    find_operating_limits,
    make_image_perturbation,
    make_validation_set,
    measure_conditions,
    summarize_face_files,
)
from stillroom.jobs import Job

__all__ = ["ImageData", "open_image_data"]


@dataclass(frozen=True, eq=False)
class ImageData(ModalityData):
    """Faces; ``files`` is the audit of a benchmark's files, None where fakes are made here."""

    source: FacesSettings
    files: BenchmarkAudit | None = None

    role = "faces"
    nouns = ("faces", "person", "people")
    pairs = ImagePairDataset

    @override
    def forge(self, samples: Sequence[Face], seed: int, repeats: int = 1) -> ValidationSet:
        frames = self.settings.model.num_frames
        return make_validation_set(
            samples, self.forgeries, seed=seed, repeats=repeats, frames=frames
        )

    @override
    def find_limits(
        self, detector: TrainedDetector, validation: ValidationSet
    ) -> tuple[int, int, bool]:
        return find_operating_limits(detector, validation)

    @override
    def measure_conditions(self, detector: TrainedDetector, test: ValidationSet) -> dict[str, Any]:
        return measure_conditions(detector, test)

    @override
    def summarize_files(self, training_sample: ValidationSet) -> FileTraits:
        images, labels = training_sample.images, training_sample.labels
        fakes = [image for image, label in zip(images, labels, strict=True) if label]
        return summarize_face_files(self.split("train"), fakes, jpeg=self.settings.views.jpeg)

    @override
    def make_perturbations(
        self, metadata: DetectorMetadata
    ) -> tuple[Perturbation, Perturbation | None]:
        works = (metadata.figures["auc"]["h264"]["low"] or 0) > 0.5
        return (
            make_image_perturbation(metadata.least_quality, metadata.least_face / metadata.size),
            (lambda image, _: apply_perturbation(IMAGE_CONDITIONS["h264"], image))
            if works
            else None,
        )

    @override
    def audit(self, training_sample: ValidationSet) -> dict[str, Any]:
        if self.files is not None:
            return {"of": "files", **self.files.summary()}
        traits = [
            {"size": str(image.shape), "colours": "grey" if is_grayscale(image) else "colour"}
            for image in training_sample.images
        ]
        audit = audit_pairs(traits, training_sample.labels, training_sample.groups, seed=self.seed)
        return {"of": "pairs made in memory", **audit.summary()}

    @override
    def write_card(
        self, folder: Path, metadata: DetectorMetadata, figures: Mapping[str, Any]
    ) -> None:
        write_image_model_card(folder, metadata, figures, self.source)

    @override
    def describe_limits(self, metadata: DetectorMetadata) -> str:
        return (
            f"; validated down to face crops of {metadata.least_face} pixels and JPEG "
            f"{metadata.least_quality}"
        )


def open_image_data(recipe: ForensicsRecipe, settings: DetectorSettings, job: Job) -> ImageData:
    """Open the faces of a training; a hash of the name assigns each person to one split.

    Raises:
        DataError: If a split is empty, or there is no consent for the faces.
    """
    common: dict[str, Any] = {
        "settings": settings,
        "seed": recipe.seed,
        "folder": recipe.faces.folder,
        "input_size": settings.pixels,
        "size": recipe.size,
        "margin": recipe.faces.margin,
        "source": recipe.faces,
    }
    if settings.known is not None:
        benchmark = open_benchmark_pairs(
            Path(settings.known.manifest), recipe.size, recipe.faces.margin, job.say
        )
        return ImageData(
            samples=benchmark.faces,
            splits=benchmark.splits,
            forgeries=[benchmark.pairs],
            generators=tuple(dict.fromkeys(benchmark.pairs.names)),
            name=benchmark.name,
            origin=f"a benchmark's, {settings.known.basis}",
            consent="",
            left_out=benchmark.left_out,
            files=benchmark.audit,
            **common,
        )
    forgeries = [recipe.method, *settings.also]
    names = [method.method_name() for method in forgeries]
    count = max(recipe.count, 2)
    bases = open_faces(
        recipe.faces, names, seed=recipe.seed, count=count, size=recipe.size, say=job.say
    )
    faces = tuple(bases[number] for number in range(len(bases)))
    folder = recipe.faces.folder
    return ImageData(
        samples=faces,
        splits=split_identities([face.identity for face in faces], recipe, "faces"),
        forgeries=forgeries,
        generators=tuple(dict.fromkeys(names)),
        name=Path(folder).resolve().name if folder else "drawn faces",
        origin=bases.origin,
        consent=bases.consent,
        left_out=bases.left_out,
        **common,
    )
