"""ForensicsRecipe: source faces or voices, forgery methods, identity splits, detector training."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stillroom.errors import RecipeError
from stillroom.forensics.interfaces import (
    AUDIO_FORGERIES,
    BENIGN_EDITS,
    IMAGE_FORGERIES,
    MIN_WATERMARK_SECONDS,
    AudioForgery,
    BenignEdit,
    ImageForgery,
)
from stillroom.forensics.settings import DetectorSettings, find_changed_settings
from stillroom.recipes import ENGINE, EngineChoice, Recipe, Reference, Settings, engine_error

__all__ = [
    "AudioSettings",
    "FacesSettings",
    "ForensicsRecipe",
    "MarkingSettings",
    "MediaOutputSettings",
    "SourceSettings",
    "SplitSettings",
]


class SourceSettings(Settings):
    """Source of faces or voices; without a folder they are drawn by program and depict nobody."""

    group: ClassVar[str] = "faces"
    folder: Reference | None = Field(
        default=None,
        description="images or recordings to start from; null draws faces or voices that belong to "
        "nobody",
    )
    synthetic_source: str = Field(
        default="",
        max_length=200,
        description="for synthetic files: the generator that made them; a claim that is recorded "
        "with every file, and refused where files hold metadata of cameras or recorders",
    )
    consent: Reference | None = Field(
        default=None,
        description="for files of people: the consent record that covers them "
        "(stillroom forensics consent writes one)",
    )
    basis: str = Field(
        default="",
        max_length=200,
        description="for files of people, where a detector is trained and no file is written: the "
        "license or agreement that permits their use",
    )

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        is_of_people = self.consent is not None or bool(self.basis)
        is_declared = is_of_people or bool(self.synthetic_source)
        if is_of_people and self.synthetic_source:
            raise RecipeError(
                "the files are declared both of people and synthetic",
                code="forensics.whose-faces",
                where=self.group,
                expected="consent or basis for files of people, or synthetic_source for synthetic "
                "files",
                next="remove the one that does not apply, or split the files into two folders",
            )
        if self.folder is not None and not is_declared:
            raise RecipeError(
                "the source of the faces or voices is not declared",
                code="forensics.whose-faces",
                where=self.group,
                expected="folder together with consent for files of people, or with "
                "synthetic_source for synthetic files",
                next="stillroom forensics consent --help, or remove folder to draw them",
            )
        if self.folder is None and is_declared:
            raise RecipeError(
                "consent, basis and synthetic_source need a folder",
                code="forensics.whose-faces",
                where=self.group,
                expected="folder together with them",
                next="name the folder, or remove them",
            )
        return self


class FacesSettings(SourceSettings):
    """Source of faces, and the margin around each face."""

    margin: float = Field(
        default=1.9, ge=1, le=4, description="side of the square crop, in face sizes"
    )


class AudioSettings(SourceSettings):
    """Forge audio instead of faces: source of voices, methods, duration."""

    group: ClassVar[str] = "sound"
    methods: list[Annotated[AudioForgery, AUDIO_FORGERIES.choice("vocoder")]] = Field(
        default_factory=lambda: [AUDIO_FORGERIES.build("vocoder")],
        min_length=1,
        description="forgery methods; one is drawn at random per sample",
    )
    seconds: float = Field(
        default=4.0,
        ge=0.5,
        le=60,
        description="duration in seconds of a sample and of the detector's input; audio files "
        "need at least 3",
    )
    snr: float = Field(
        default=18.0,
        ge=12,
        le=24,
        description="signal-to-watermark ratio in dB; a lower value is more robust, and up to 6 dB "
        "lower is used where the watermark cannot be read back",
    )


class MarkingSettings(Settings):
    """Strength of the watermark, which cannot be turned off."""

    psnr: float = Field(
        default=41.5,
        ge=36,
        le=44,
        description="PSNR of the marked image in dB; lower is more robust",
    )


class SplitSettings(Settings):
    """Shares of the identities per split; an identity is never in two splits."""

    held_out: float = Field(default=0.2, ge=0, le=0.9, description="share of test identities")
    validation: float = Field(
        default=0.1, ge=0, le=0.9, description="share of validation identities"
    )


class MediaOutputSettings(Settings):
    """Format of the written files."""

    format: Literal["jpg", "png"] = Field(default="jpg", description="file format of all images")
    quality: int = Field(default=92, ge=40, le=100, description="JPEG quality of real and fake")


_MODES = {
    "sound": "forges audio",
    "detector": "trains a face detector, and writes no media",
    "sound detector": "trains an audio detector, and writes no media",
    "known": "trains on the fakes of a benchmark",
}
_UNUSED_SETTINGS = {
    "sound": ("method", "faces", "edits", "size", "marking", "out", "workers"),
    "detector": ("edits", "marking", "out", "workers"),
    "sound detector": (
        "sound.snr",
        *(f"detector.{name}" for name in ("known", "also", "pixels", "teacher", "teacher_share")),
        *(f"detector.views.{name}" for name in ("crop", "flip", "colour", "least_quality")),
    ),
    "known": (
        "method",
        "split",
        "detector.also",
        *(f"faces.{name}" for name in ("folder", "synthetic_source", "consent", "basis")),
    ),
}
"""Settings without effect per mode, which must keep their defaults."""


def _has_mode(recipe: ForensicsRecipe, mode: str) -> bool:
    detector, is_audio = recipe.detector, recipe.sound is not None
    if mode == "known":
        return detector is not None and detector.known is not None and not is_audio
    if mode == "detector":
        return detector is not None and not is_audio
    return is_audio and (mode == "sound" or detector is not None)


class ForensicsRecipe(Recipe):
    """Create labeled forgeries for testing detectors, each with its mask and real twin."""

    kind: Literal["forensics"] = Field(default="forensics", description="create labeled forgeries")
    method: Annotated[ImageForgery, IMAGE_FORGERIES.choice("sbi")] = Field(
        default="sbi",
        validate_default=True,
        description="forgery method",
    )
    faces: FacesSettings = Field(default_factory=FacesSettings, description="source of the faces")
    edits: list[Annotated[BenignEdit, BENIGN_EDITS.choice()]] = Field(
        default_factory=list,
        description="benign edits of the real twins, drawn at random; [] leaves them unedited",
    )
    count: int = Field(default=16, ge=1, le=100_000, description="fakes; each has one real twin")
    size: int = Field(default=256, ge=128, le=2048, description="width and height in pixels")
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="forging processes; the output bytes do not depend on it",
    )
    engine: EngineChoice = ENGINE
    marking: MarkingSettings = Field(
        default_factory=MarkingSettings, description="watermark of every file"
    )
    split: SplitSettings = Field(default_factory=SplitSettings, description="identity splits")
    out: MediaOutputSettings = Field(
        default_factory=MediaOutputSettings, description="output files"
    )
    sound: AudioSettings | None = Field(
        default=None,
        description="forge audio instead of faces: method, faces, edits, size, marking, out and "
        "workers then have no effect and must keep their defaults",
    )
    detector: DetectorSettings | None = Field(
        default=None,
        description="train a detector of these forgeries instead of writing them; the artifact is "
        "its checkpoint",
    )

    @model_validator(mode="after")
    def _check_modality(self) -> ForensicsRecipe:
        is_audio = self.detector is not None and self.detector.model.is_audio
        if self.detector is not None and is_audio != (self.sound is not None):
            name = self.detector.model.method_name()
            raise RecipeError(
                f"{name} judges {'audio' if is_audio else 'faces'}",
                code="forensics.other-sense",
                where="detector.model",
                expected="the group 'sound' for lfcc and aasist, and no such group for others",
                next="sound: {}" if is_audio else "detector.model=lfcc",
            )
        if (
            self.sound is not None
            and self.detector is None
            and self.sound.seconds < MIN_WATERMARK_SECONDS
        ):
            raise RecipeError(
                f"audio of {self.sound.seconds:g} s is too short to carry a watermark, and no file "
                "is written without one",
                code="forensics.too-short",
                where="sound.seconds",
                expected=(
                    f"at least {MIN_WATERMARK_SECONDS:g}, except where a detector is trained "
                    "in memory"
                ),
                next="sound.seconds=4",
            )
        return self

    @model_validator(mode="after")
    def _reject_unused_settings(self) -> ForensicsRecipe:
        for mode, names in _UNUSED_SETTINGS.items():
            if not _has_mode(self, mode):
                continue
            if idle := find_changed_settings(self, names):
                raise RecipeError(
                    f"the recipe {_MODES[mode]}: {', '.join(idle)} would have no effect",
                    code="forensics.other-sense" if "sound" in mode else "forensics.without-effect",
                    where=idle[0],
                    expected="default values for settings without effect",
                    next=f"remove {', '.join(idle)}",
                )
        return self

    @model_validator(mode="after")
    def _require_consent(self) -> ForensicsRecipe:
        if self.engine.ray is not None and (self.detector or self.sound) is not None:
            raise engine_error("detector training and audio forging run on one machine")
        group = "sound" if self.sound is not None else "faces"
        if self.detector is None and (self.sound or self.faces).basis:
            raise RecipeError(
                f"{group}.basis is for detector training: written fakes need consent",
                code="forensics.whose-faces",
                where=f"{group}.basis",
                expected=f"{group}.consent for files of people",
                next="stillroom forensics consent --help, or add the group 'detector'",
            )
        return self
