"""DetectorSettings: detector choice, augmentation, training data, and optimization.

Imports no torch, so that a recipe can validate these settings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator
from pydantic.fields import FieldInfo

from stillroom.errors import RecipeError
from stillroom.forensics.interfaces import (
    DETECTORS,
    IMAGE_FORGERIES,
    CalibrationMethod,
    Detector,
    ImageForgery,
)
from stillroom.recipes import Reference, Settings
from stillroom.train.settings import TrainSettings

__all__ = [
    "AugmentationSettings",
    "BenchmarkPairsSettings",
    "DetectorSettings",
    "FitSettings",
    "find_changed_settings",
]


class FitSettings(Settings):
    """Optimizer, schedule and checkpointing; each step sees as many real faces as fakes."""

    steps: int | None = Field(
        default=None, ge=1, description="optimizer steps; null derives them from 'epochs'"
    )
    epochs: float = Field(default=12.0, gt=0, description="passes over the faces")
    batch_size: int = Field(
        default=12, ge=1, le=4096, description="faces per step, each real and forged"
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="peak learning rate")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="cosine", description="learning rate decay after the warmup"
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps for warmup")
    weight_decay: float = Field(default=0.01, ge=0, description="weight decay of matrices")
    max_grad_norm: float | None = Field(
        default=5.0, gt=0, description="maximum gradient norm; null disables clipping"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32", description="precision of matrix products; weights stay float32"
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="CPU threads; 0 uses every core; another number may change the last bits",
    )
    save_every_s: float = Field(
        default=60.0, ge=0, description="seconds between saved states for --resume"
    )

    def count_steps(self, faces: int) -> int:
        """Return the number of optimizer steps for a number of faces."""
        return self.to_train().count_steps(faces)

    def to_train(self) -> TrainSettings:
        """Convert to the settings of the training loop."""
        return TrainSettings(**self.model_dump())


class AugmentationSettings(Settings):
    """Augmentation applied equally to a real face and its fake."""

    crop: float = Field(default=0.12, ge=0, lt=0.5, description="maximum share cropped away")
    flip: bool = Field(default=True, description="mirror half of the pairs")
    colour: float = Field(default=0.5, ge=0, le=3, description="strength of the color jitter")
    jpeg: float = Field(default=0.5, ge=0, le=1, description="share of pairs that are compressed")
    least_quality: int = Field(default=40, ge=1, le=100, description="lowest JPEG quality")


class BenchmarkPairsSettings(Settings):
    """Pairs of a benchmark, already forged."""

    manifest: Reference = Field(description="benchmark manifest or its folder; needs splits")
    basis: str = Field(
        min_length=1, max_length=200, description="license or agreement that permits its use"
    )


class DetectorSettings(Settings):
    """Train a detector on the faces and the recipe's forgeries, which are made on the fly."""

    model: Annotated[Detector, DETECTORS.choice("cnn")] = Field(
        default="cnn", validate_default=True, description="detector architecture"
    )
    pixels: int = Field(
        default=128, ge=32, le=1024, description="width and height of the network's input"
    )
    known: BenchmarkPairsSettings | None = Field(
        default=None,
        description="train on the fakes of a benchmark instead of forging, with its splits; the "
        "recipe's method, split, detector.also and face sources then have no effect and must keep "
        "their defaults",
    )
    also: list[Annotated[ImageForgery, IMAGE_FORGERIES.choice()]] = Field(
        default_factory=list,
        description="further forgeries besides method; one is drawn at random per pair",
    )
    train: FitSettings = Field(default_factory=FitSettings, description="optimizer and schedule")
    views: AugmentationSettings = Field(
        default_factory=AugmentationSettings, description="augmentation of both images of a pair"
    )
    calibration: CalibrationMethod = Field(
        default="platt",
        description="calibration of scores to probabilities, fitted on validation faces only",
    )
    start: Reference | None = Field(
        default=None, description="checkpoint of the same architecture for the initial weights"
    )
    teacher: Reference | None = Field(
        default=None,
        description="detector of any architecture whose scores are distilled in addition to labels",
    )
    teacher_share: float = Field(
        default=0.5, ge=0, le=1, description="weight of the teacher's scores relative to the labels"
    )
    shuffle_labels: bool = Field(
        default=False,
        description="control experiment: random labels, for which a sound protocol measures 0.5",
    )

    @model_validator(mode="after")
    def _reject_still_fakes(self) -> Self:
        if self.known is not None and self.model.num_frames > 1:
            raise RecipeError(
                f"{self.model.method_name()} takes {self.model.num_frames} frames of a face, and "
                "the fakes of a benchmark are single images: a still fake next to a moving real "
                "face would let the detector learn the motion",
                code="forensics.still-fakes",
                where="detector.known",
                expected="a detector of single images, or forgeries that are synthesized frame by "
                "frame",
                next="remove detector.known, and name a method",
            )
        return self


def find_changed_settings(settings: BaseModel, names: Iterable[str]) -> list[str]:
    """Return the names of settings that differ from their defaults.

    Args:
        settings: The settings.
        names: Dotted names, such as ``detector.views.crop``; a name below a missing group counts as
            unchanged.
    """
    return [name for name in names if _is_changed(settings, name)]


def _is_changed(settings: BaseModel, name: str) -> bool:
    *groups, last = name.split(".")
    group_settings: Any = settings
    for group in groups:
        group_settings = getattr(group_settings, group)
        if group_settings is None:
            return False
    field: FieldInfo = type(group_settings).model_fields[last]
    default = field.get_default(call_default_factory=True, validated_data={})
    value = getattr(group_settings, last)
    if isinstance(default, str) and isinstance(value, BaseModel):  # a method given by name
        default = type(value)() if getattr(type(value), "method_name", str)() == default else None
    return bool(value != default)
