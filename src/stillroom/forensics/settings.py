"""DetectorSettings: detector choice, augmentation, training data, and optimization.

Free of torch, so that a recipe can hold and check it.
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
    """Optimizer, schedule and bookkeeping; each step sees as many real faces as fakes."""

    steps: int | None = Field(
        default=None, ge=1, description="optimizer steps; null takes as many as 'epochs' makes"
    )
    epochs: float = Field(default=12.0, gt=0, description="passes over the faces")
    batch_size: int = Field(
        default=12, ge=1, le=4096, description="faces a step, each real and forged"
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="peak learning rate")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="cosine", description="how the learning rate falls after the warmup"
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps that warm up")
    weight_decay: float = Field(default=0.01, ge=0, description="decay of matrices")
    max_grad_norm: float | None = Field(
        default=5.0, gt=0, description="clip the gradient's norm to this; null does not clip"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32", description="of products; weights stay float32"
    )
    threads: int = Field(
        default=0, ge=0, description="CPU threads; 0 takes every core; others may change last bits"
    )
    save_every_s: float = Field(
        default=60.0, ge=0, description="seconds between saved states for --resume"
    )

    def count_steps(self, faces: int) -> int:
        """Return the optimizer steps that these settings make of so many faces."""
        return self.to_train().count_steps(faces)

    def to_train(self) -> TrainSettings:
        """Return these as the training loop's settings."""
        return TrainSettings(**self.model_dump())


class AugmentationSettings(Settings):
    """What happens to a real face and its fake alike before the detector sees them."""

    crop: float = Field(default=0.12, ge=0, lt=0.5, description="most that is cut off, as a share")
    flip: bool = Field(default=True, description="mirror every other pair")
    colour: float = Field(default=0.5, ge=0, le=3, description="strength of the colour change")
    jpeg: float = Field(default=0.5, ge=0, le=1, description="share of pairs that are compressed")
    least_quality: int = Field(default=40, ge=1, le=100, description="lowest JPEG quality of those")


class BenchmarkPairsSettings(Settings):
    """A benchmark's pairs, forged already."""

    manifest: Reference = Field(description="its manifest, or the folder of one; with splits")
    basis: str = Field(
        min_length=1, max_length=200, description="the license or agreement it is used under"
    )


class DetectorSettings(Settings):
    """Learn a detector from the faces and the recipe's forgeries, made as they are needed."""

    model: Annotated[Detector, DETECTORS.choice("cnn")] = Field(
        default="cnn", validate_default=True, description="which detector"
    )
    pixels: int = Field(
        default=128, ge=32, le=1024, description="width and height of what it looks at"
    )
    known: BenchmarkPairsSettings | None = Field(
        default=None,
        description="learn from a benchmark's own fakes instead of forging; its splits hold; "
        "the recipe's method, split, detector.also and whose faces are then without effect, and "
        "have to be left as they are",
    )
    also: list[Annotated[ImageForgery, IMAGE_FORGERIES.choice()]] = Field(
        default_factory=list,
        description="further forgeries beside the recipe's method; one is drawn by lot each time",
    )
    train: FitSettings = Field(default_factory=FitSettings, description="optimizer and schedule")
    views: AugmentationSettings = Field(
        default_factory=AugmentationSettings, description="what pairs go through alike"
    )
    calibration: CalibrationMethod = Field(
        default="platt", description="how scores become chances, fitted on validation faces alone"
    )
    start: Reference | None = Field(
        default=None, description="a detector of the same make to go on from"
    )
    teacher: Reference | None = Field(
        default=None, description="a detector, of any make, whose scores are learned beside labels"
    )
    teacher_share: float = Field(
        default=0.5, ge=0, le=1, description="weight of the teacher's scores against the labels"
    )
    shuffle_labels: bool = Field(
        default=False,
        description="a control: labels drawn by lot, so that a sound protocol measures 0.5",
    )

    @model_validator(mode="after")
    def _move_what_is_forged_here(self) -> Self:
        if self.known is not None and self.model.looks_at > 1:
            raise RecipeError(
                f"{self.model.method_name()} looks at {self.model.looks_at} frames of a face, and "
                "fakes of a benchmark are single pictures: each would stand still beside a real "
                "face that is set in motion, and that is what would be learned",
                code="forensics.still-fakes",
                where="detector.known",
                expected="a detector of single pictures, or forgeries that are made here, frame by "
                "frame",
                next="leave out detector.known, and name a method",
            )
        return self


def find_changed_settings(given: BaseModel, names: Iterable[str]) -> list[str]:
    """Return which of some settings are not what they are where nobody sets them.

    Args:
        given: The settings.
        names: Dotted, as ``detector.views.crop``; what lies below a group that is not there is as
            it was.
    """
    return [name for name in names if _is_changed(given, name)]


def _is_changed(given: BaseModel, name: str) -> bool:
    *groups, last = name.split(".")
    at: Any = given
    for group in groups:
        at = getattr(at, group)
        if at is None:
            return False
    field: FieldInfo = type(at).model_fields[last]
    plain = field.get_default(call_default_factory=True, validated_data={})
    value = getattr(at, last)
    if isinstance(plain, str) and isinstance(value, BaseModel):  # a method by its name
        plain = type(value)() if getattr(type(value), "method_name", str)() == plain else None
    return bool(value != plain)
