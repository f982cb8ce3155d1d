"""Settings that several kinds of the room share: media sources, splits, augmentation, training.

Imports no torch, so that a recipe can validate these settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from stillroom.errors import RecipeError
from stillroom.recipes import Reference, Settings
from stillroom.train.settings import TrainSettings

__all__ = [
    "AttackSettings",
    "AudioAugmentation",
    "DetectorSource",
    "DrawnSource",
    "EotJpegAttack",
    "FaceMargin",
    "FgsmAttack",
    "FitSettings",
    "ImageAugmentation",
    "LicensedSource",
    "PeopleFaces",
    "PeopleSource",
    "PgdAttack",
    "SetFaces",
    "SetVoices",
    "SplitSettings",
    "SquareAttack",
    "SyntheticFaces",
    "SyntheticSource",
]

FaceMargin = Annotated[
    float, Field(ge=1, le=4, description="side of the square crop around a face, in face sizes")
]


class DrawnSource(Settings):
    """Faces or voices drawn by program, which belong to nobody."""

    type: Literal["drawn"] = Field(
        default="drawn", description="faces or voices drawn by program, which belong to nobody"
    )


class PeopleSource(Settings):
    """Files of people who consented."""

    type: Literal["people"] = Field(description="files of people, covered by a consent record")
    folder: Reference = Field(description="folder of the files, with one folder a person")
    consent: Reference = Field(
        description="consent record that covers them (stillroom forensics consent writes one)"
    )


class LicensedSource(Settings):
    """Files of people that may be used to train detectors, and for no file that is written."""

    type: Literal["licensed"] = Field(
        description="files of people, used under a license; only where no file is written"
    )
    folder: Reference = Field(description="folder of the files, with one folder a person")
    basis: str = Field(
        min_length=1, max_length=200, description="license or agreement that permits their use"
    )


class SyntheticSource(Settings):
    """Synthetic files, which depict nobody."""

    type: Literal["synthetic"] = Field(description="synthetic files, which depict nobody")
    folder: Reference = Field(description="folder of the files")
    generator: str = Field(
        min_length=1,
        max_length=200,
        description="generator of the files; a claim that is recorded with every file, and refused "
        "where files hold metadata of cameras or recorders",
    )


class PeopleFaces(PeopleSource):
    """Images of people who consented."""

    face_margin: FaceMargin = 1.9


class SyntheticFaces(SyntheticSource):
    """Synthetic images of faces."""

    face_margin: FaceMargin = 1.9


_DECLARATIONS = {"drawn": "", "people": "consent", "licensed": "basis", "synthetic": "generator"}


def _require_declaration(source: object, types: tuple[str, ...]) -> object:
    """Refuse files whose origin is not declared, or declared in two ways, as a matter of consent.

    Args:
        source: The group of settings as written.
        types: Types of sources that the kind accepts.
    """
    if not isinstance(source, Mapping):
        return source
    chosen = source.get("type", "")
    named = [key for key in _DECLARATIONS.values() if key and source.get(key)]
    declared = _DECLARATIONS.get(str(chosen), "")
    if chosen in types and named == ([declared] if declared else []):
        if bool(source.get("folder")) == bool(declared):
            return source
        problem = f"type: {chosen} {'needs a folder' if declared else 'has no folder'}"
    elif "basis" in named and "licensed" not in types:
        problem = "basis is for detector training: written fakes need consent"
    elif len(named) > 1:
        problem = f"the files are declared in two ways: {' and '.join(named)}"
    else:
        problem = "the source of the faces or voices is not declared"
    expected = [
        f"{{type: {name}, folder: ..., {_DECLARATIONS[name]}: ...}}" if name != "drawn" else name
        for name in types
    ]
    raise RecipeError(
        problem,
        code="forensics.whose-faces",
        expected=" or ".join(expected),
        next="stillroom forensics consent --help, or type: drawn",
    )


def _declared_for(*types: str) -> BeforeValidator:
    return BeforeValidator(lambda source: _require_declaration(source, types))


_BY_TYPE: Any = Field(discriminator="type")

SetFaces = Annotated[
    DrawnSource | PeopleFaces | SyntheticFaces,
    _BY_TYPE,
    _declared_for("drawn", "people", "synthetic"),
]
"""Faces of a data set that is written."""

SetVoices = Annotated[
    DrawnSource | PeopleSource | SyntheticSource,
    _BY_TYPE,
    _declared_for("drawn", "people", "synthetic"),
]
"""Voices of a data set that is written."""

DetectorSource = Annotated[
    DrawnSource | PeopleSource | LicensedSource | SyntheticSource,
    _BY_TYPE,
    _declared_for("drawn", "people", "licensed", "synthetic"),
]
"""Faces or voices that a detector is trained on, in memory."""


class SplitSettings(Settings):
    """Shares of the identities per split; an identity is never in two splits."""

    test: float = Field(default=0.2, ge=0, le=0.9, description="share of test identities")
    validation: float = Field(
        default=0.1, ge=0, le=0.9, description="share of validation identities"
    )

    @model_validator(mode="after")
    def _leave_training(self) -> SplitSettings:
        if self.test + self.validation >= 1:
            raise ValueError("test and validation together must leave a share for training")
        return self


class FitSettings(Settings):
    """Optimizer, schedule and checkpointing; each step sees as many real samples as fakes."""

    steps: int | None = Field(
        default=None, ge=1, description="optimizer steps; null derives them from 'epochs'"
    )
    epochs: float = Field(default=12.0, gt=0, le=1e6, description="passes over the faces or voices")
    batch_size: int = Field(
        default=12, ge=1, le=4096, description="faces or voices per step, each real and forged"
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

    def count_steps(self, samples: int) -> int:
        """Return the number of optimizer steps for a number of faces or voices."""
        return self.to_train().count_steps(samples)

    def to_train(self) -> TrainSettings:
        """Convert to the settings of the training loop."""
        return TrainSettings(**self.model_dump())


class ImageAugmentation(Settings):
    """Augmentation applied equally to a real face and its fake."""

    max_crop: float = Field(default=0.12, ge=0, lt=0.5, description="maximum share cropped away")
    flip: bool = Field(default=True, description="mirror half of the pairs")
    color_jitter: float = Field(default=0.5, ge=0, le=3, description="strength of the color jitter")
    jpeg_probability: float = Field(
        default=0.5, ge=0, le=1, description="share of pairs that are compressed as JPEG"
    )
    min_jpeg_quality: int = Field(default=40, ge=1, le=100, description="lowest JPEG quality")


class AudioAugmentation(Settings):
    """Augmentation applied equally to a real recording and its fake, besides gain and noise."""

    codec_probability: float = Field(
        default=0.5, ge=0, le=1, description="share of pairs that are encoded as MP3 or AAC"
    )


class FgsmAttack(Settings):
    """One step along the sign of the gradient."""

    name: Literal["fgsm"] = Field(default="fgsm", description="one step along the gradient")


class PgdAttack(Settings):
    """Several steps along the sign of the gradient, from a random start."""

    name: Literal["pgd"] = Field(default="pgd", description="several steps along the gradient")
    steps: int = Field(default=20, ge=1, le=1000, description="number of steps")


class SquareAttack(Settings):
    """Random search over scores alone."""

    name: Literal["square"] = Field(default="square", description="random search over scores")
    queries: int = Field(
        default=200, ge=1, le=100_000, description="maximum number of score queries"
    )


class EotJpegAttack(Settings):
    """Several steps along the gradient through JPEG compression."""

    name: Literal["eot_jpeg"] = Field(
        default="eot_jpeg", description="several steps along the gradient through JPEG"
    )
    steps: int = Field(default=20, ge=1, le=1000, description="number of steps")


AttackSettings = FgsmAttack | PgdAttack | SquareAttack | EotJpegAttack
"""An adversarial attack on an image detector."""
