"""Train a detector of forged faces on own forgeries or on the fakes of a benchmark."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillroom.forensics.extras import require_packages
from stillroom.forensics.interfaces import (
    IMAGE_DETECTORS,
    IMAGE_FORGERIES,
    CalibrationMethod,
    ImageDetector,
    ImageForgery,
)
from stillroom.forensics.settings import (
    DetectorSource,
    DrawnSource,
    FaceMargin,
    FitSettings,
    ImageAugmentation,
    SplitSettings,
)
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.provenance import Artifact
from stillroom.recipes import DISTINCT, Recipe, Reference, Settings
from stillroom.train.replay import TrainingReplayer

__all__ = [
    "JOB_KIND",
    "BenchmarkData",
    "ForgeryData",
    "ImageDetectorRecipe",
    "TeacherSettings",
    "estimate",
    "run",
]

_SECONDS_LEARNED, _SECONDS_FORGED = 0.035, 0.01  # per face, at 128 and 256 pixels


class ForgeryData(Settings):
    """Faces that are forged on the fly; no fake is written."""

    type: Literal["forgeries"] = Field(
        default="forgeries", description="faces that are forged on the fly"
    )
    forgeries: Annotated[list[Annotated[ImageForgery, IMAGE_FORGERIES.choice("sbi")]], DISTINCT] = (
        Field(
            default_factory=lambda: [IMAGE_FORGERIES.build("sbi")],
            min_length=1,
            description="forgery methods; one is drawn at random per pair",
        )
    )
    faces: DetectorSource = Field(default_factory=DrawnSource, description="source of the faces")
    count: int = Field(default=16, ge=2, le=100_000, description="maximum number of faces")
    split: SplitSettings = Field(default_factory=SplitSettings, description="identity splits")


class BenchmarkData(Settings):
    """Real images and fakes of a benchmark, with its splits."""

    type: Literal["benchmark"] = Field(description="real images and fakes of a benchmark")
    manifest: Reference = Field(description="benchmark manifest or its folder; needs splits")
    basis: str = Field(
        min_length=1, max_length=200, description="license or agreement that permits its use"
    )


class TeacherSettings(Settings):
    """A detector whose scores are distilled in addition to the labels."""

    checkpoint: Reference = Field(description="trained detector of any architecture")
    weight: float = Field(
        default=0.5, ge=0, le=1, description="weight of its scores relative to the labels"
    )


class ImageDetectorRecipe(Recipe):
    """Train a detector of forged faces; the artifact is its checkpoint."""

    kind: Literal["forensics.image_detector"] = Field(
        default="forensics.image_detector", description="train a detector of forged faces"
    )
    model: Annotated[ImageDetector, IMAGE_DETECTORS.choice("cnn")] = Field(
        default="cnn", validate_default=True, description="detector architecture"
    )
    data: ForgeryData | BenchmarkData = Field(
        default_factory=ForgeryData,
        discriminator="type",
        description="pairs of real and fake faces",
    )
    face_size: int = Field(
        default=256, ge=128, le=2048, description="width and height of the face crops in pixels"
    )
    face_margin: FaceMargin = 1.9
    image_size: int = Field(
        default=128, ge=32, le=1024, description="width and height of the network's input"
    )
    augmentation: ImageAugmentation = Field(
        default_factory=ImageAugmentation, description="augmentation of both images of a pair"
    )
    train: FitSettings = Field(default_factory=FitSettings, description="optimizer and schedule")
    initial_weights: Reference | None = Field(
        default=None, description="detector of the same architecture for the initial weights"
    )
    teacher: TeacherSettings | None = Field(
        default=None, description="detector whose scores are distilled in addition to the labels"
    )
    calibration: CalibrationMethod = Field(
        default="platt",
        description="calibration of scores to probabilities, fitted on validation faces only",
    )
    shuffle_labels: bool = Field(
        default=False,
        description="control experiment: random labels, for which a sound protocol measures 0.5",
    )


def run(recipe: ImageDetectorRecipe, job: Job) -> Artifact:
    """Train the detector; raises as ``train_detector``."""
    require_packages("av", "cv2", "PIL")
    from stillroom.forensics.training.train_detector import train_detector
    from stillroom.forensics.training.train_image import open_image_data

    return train_detector(open_image_data(recipe, job), job)


def estimate(recipe: ImageDetectorRecipe) -> Estimate:
    """Estimate the resources, as measured with the default backbone at 128 pixels."""
    share = (recipe.image_size / 128) ** 2
    data = recipe.data
    steps = recipe.train.count_steps(data.count if isinstance(data, ForgeryData) else 16)
    images = 2 * recipe.train.batch_size
    seconds = _SECONDS_LEARNED * share + _SECONDS_FORGED * (recipe.face_size / 256) ** 2
    return Estimate(
        memory_bytes=int(700_000_000 + images * share * 40_000_000),
        disk_bytes=80_000_000,
        seconds=steps * images * seconds,
        memory_knob="lower train.batch_size or image_size",
        disk_knob="choose a smaller detector",
        basis=f"{steps} steps of {recipe.train.batch_size} faces and as many fakes of "
        f"{recipe.image_size}x{recipe.image_size} pixels",
    )


JOB_KIND = JobKind(
    recipe=ImageDetectorRecipe, run=run, estimate=estimate, replayer=TrainingReplayer()
)
