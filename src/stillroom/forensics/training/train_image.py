"""Image detector training: faces, forgeries, operating limits; ``train_detector`` trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from typing_extensions import override

from stillroom.forensics.benchmark.audit import BenchmarkAudit
from stillroom.forensics.benchmark.metrics import roc_auc
from stillroom.forensics.inference.domain import FileTraits
from stillroom.forensics.inference.trained_detector import DetectorMetadata, TrainedDetector
from stillroom.forensics.interfaces import ImageForgery
from stillroom.forensics.media.face_types import Face, Image, Mask
from stillroom.forensics.media.transforms import compress_jpeg, rescale
from stillroom.forensics.modalities.image import (
    AugmentedPair,
    ImageModality,
    augment_pair,
    compress_h264,
    is_grayscale,
    make_image_perturbation,
    to_channels_first,
)
from stillroom.forensics.modalities.interfaces import Perturbation
from stillroom.forensics.synthesis.faces import open_faces, split_identities
from stillroom.forensics.training.pairs import (
    DetectorBatch,
    PairDataset,
    forge_pair,
    open_benchmark_pairs,
)
from stillroom.forensics.training.train_detector import ModalityData, describe_source
from stillroom.forensics.training.validation import LabeledSamples, make_labeled_samples
from stillroom.jobs import Job

if TYPE_CHECKING:
    from stillroom.forensics.jobs.image_detector import ForgeryData, ImageDetectorRecipe

__all__ = [
    "ImageData",
    "ImagePairDataset",
    "make_batch",
    "make_validation_set",
    "open_image_data",
]

_QUALITIES = (90, 70, 50, 40, 30, 20)
_SHARES = (0.75, 0.5, 0.375, 0.25)
_MIN_REMAINING = 0.7  # share of the area above chance that must remain within the limits


class ImagePairDataset(PairDataset):
    """Training pairs of faces."""

    recipe: ImageDetectorRecipe

    stream = 0xDE7

    @override
    def draw(self, number: int, rng: np.random.Generator) -> AugmentedPair:
        recipe = self.recipe
        forged = forge_pair(self.samples, number, self.forgeries, rng)
        keeps = recipe.model.preserve_pixels
        return augment_pair(
            forged, recipe.augmentation, recipe.image_size, rng, preserve_pixels=keeps
        )

    @override
    def collate(self, pairs: Sequence[AugmentedPair], names: Sequence[str]) -> DetectorBatch:
        return make_batch(pairs, names, self.device)


def make_batch(
    pairs: Sequence[AugmentedPair], names: Sequence[str], device: torch.device
) -> DetectorBatch:
    """Collate pairs to one batch: all fakes, then all real twins."""
    planes = to_channels_first([pair.fake for pair in pairs] + [pair.real for pair in pairs])
    masks = np.stack([pair.mask for pair in pairs])
    count = len(pairs)
    labels = torch.cat([torch.ones(count), torch.zeros(count)])
    return DetectorBatch(
        torch.from_numpy(planes).to(device),
        labels.to(device),
        torch.from_numpy(np.concatenate([masks, np.zeros_like(masks)])).to(device),
        tuple(names),
    )


@dataclass(frozen=True, eq=False)
class ImageData(ModalityData):
    """Faces; ``files`` is the audit of a benchmark's files, None where fakes are made here."""

    recipe: ImageDetectorRecipe
    modality: ImageModality
    files: BenchmarkAudit | None = None

    nouns = ("faces", "person", "people")
    pairs = ImagePairDataset

    @override
    def forge(self, samples: Sequence[Face], seed: int, repeats: int = 1) -> LabeledSamples:
        # The fakes of a benchmark are given: repeated, the same pictures would count twice.
        repeats = repeats if self.files is None else 1
        return make_validation_set(samples, self.forgeries, seed=seed, repeats=repeats)

    @override
    def find_limits(
        self, detector: TrainedDetector, validation: LabeledSamples
    ) -> tuple[ImageModality, bool]:
        # JPEG qualities and sizes are lowered until less than 70 % of the area above chance
        # remains. The detector works if the whole interval of its area is above 0.5.
        clean = validation.measure(detector, lambda image: image, "clean")
        limit = 0.5 + _MIN_REMAINING * (clean.value - 0.5)
        size = validation.samples[0].shape[-2]

        def holds(change: Callable[[Image], Image]) -> bool:
            scores = detector.logits([change(image) for image in validation.samples])
            area = roc_auc(validation.labels, scores)
            return area is not None and area >= limit

        min_quality, min_size = 100, size
        for quality in _QUALITIES:
            if not holds(lambda image, quality=quality: compress_jpeg(image, quality)):  # type: ignore[misc]
                break
            min_quality = quality
        for share in _SHARES:
            if not holds(lambda image, share=share: rescale(image, share)):  # type: ignore[misc]
                break
            min_size = round(size * share)
        read = replace(detector.image_input, min_face_size=min_size, min_jpeg_quality=min_quality)
        return read, bool(clean.low > 0.5)

    @override
    def summarize_files(self, training_sample: LabeledSamples) -> FileTraits:
        samples, labels = training_sample.samples, training_sample.labels
        faces: list[Face] = self.split("train")
        fakes = [sample for sample, label in zip(samples, labels, strict=True) if label]
        images = [*(face.image for face in faces), *fakes]
        colors = sorted({"gray" if is_grayscale(image) else "color" for image in images})
        codings = {coding for face in faces for coding in face.codings}
        if codings and self.recipe.augmentation.jpeg_probability:
            codings |= {"JPEG 4:0:0", "JPEG 4:2:0"}  # of a gray image and of one in color
        wide = [face.wide for face in faces]
        return FileTraits(tuple(colors), max(wide) if min(wide) else 0.0, tuple(sorted(codings)))

    @override
    def make_perturbations(
        self, metadata: DetectorMetadata, read: ImageModality
    ) -> tuple[Perturbation, Perturbation | None]:
        works = (metadata.metrics["auc"]["h264"]["low"] or 0) > 0.5
        return (
            make_image_perturbation(read.min_jpeg_quality, read.min_face_size / read.face_size),
            (lambda image, _: compress_h264(image)) if works else None,
        )

    @property
    @override
    def set_faults(self) -> tuple[str, ...]:
        return self.files.faults if self.files is not None else ()

    @override
    def audit(self, training_sample: LabeledSamples) -> dict[str, Any]:
        if self.files is not None:
            return {"of": "files", **self.files.summary()}
        traits = [
            {"size": str(image.shape), "colors": "gray" if is_grayscale(image) else "color"}
            for image in training_sample.samples
        ]
        return self.audit_traits(traits, training_sample)


def open_image_data(recipe: ImageDetectorRecipe, job: Job) -> ImageData:
    """Open the faces of a training; a hash of the name assigns each person to one split.

    Raises:
        DataError: If a split is empty, or there is no consent for the faces.
    """
    modality = ImageModality.of(
        recipe.model, recipe.image_size, recipe.face_size, recipe.face_margin
    )
    data = recipe.data
    if data.type == "forgeries":
        return _open_forgery_data(recipe, data, modality, job)
    benchmark = open_benchmark_pairs(
        Path(data.manifest), recipe.face_size, recipe.face_margin, job.warn
    )
    return ImageData(
        recipe=recipe,
        modality=modality,
        samples=benchmark.faces,
        splits=benchmark.splits,
        forgeries=[benchmark.pairs],
        generators=tuple(dict.fromkeys(benchmark.pairs.names)),
        name=benchmark.name,
        parents={"benchmark": data.manifest},
        origin=f"a benchmark's, {data.basis}",
        num_skipped=benchmark.num_skipped,
        files=benchmark.audit,
    )


def _open_forgery_data(
    recipe: ImageDetectorRecipe, data: ForgeryData, modality: ImageModality, job: Job
) -> ImageData:
    names = tuple(dict.fromkeys(method.method_name() for method in data.forgeries))
    bases = open_faces(
        data.faces,
        names,
        seed=recipe.seed,
        count=data.count,
        size=recipe.face_size,
        margin=recipe.face_margin,
        warn=job.warn,
    )
    faces = tuple(bases[number] for number in range(len(bases)))
    people = [face.identity for face in faces]
    return ImageData(
        recipe=recipe,
        modality=modality,
        samples=faces,
        splits=split_identities(people, recipe.seed, data.split, "faces"),
        forgeries=data.forgeries,
        generators=names,
        origin=bases.origin,
        consent=bases.consent,
        num_skipped=bases.num_skipped,
        **describe_source(data.faces, "faces"),
    )


def make_validation_set(
    faces: Sequence[Face],
    forgeries: Sequence[ImageForgery],
    *,
    seed: int,
    repeats: int = 1,
) -> LabeledSamples:
    """Forge some faces deterministically, and return them with their real twins."""

    def forge(number: int, rng: np.random.Generator) -> tuple[Image, Image, Mask]:
        forged = forge_pair(faces, number, forgeries, rng)
        return forged.image, forged.twin, forged.mask

    return make_labeled_samples(faces, forge, seed=seed, repeats=repeats)
