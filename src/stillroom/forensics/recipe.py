"""ForensicsRecipe: source faces or voices, forgery methods, identity splits.

Detector training.
"""

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
    """Whose faces or voices. Without a folder they are drawn by program, and are nobody's."""

    group: ClassVar[str] = "faces"
    folder: Reference | None = Field(
        default=None,
        description="pictures, or recordings, to start from; null draws faces or voices, which "
        "are nobody's",
    )
    synthetic_source: str = Field(
        default="",
        max_length=200,
        description="of nobody's: the generator that made them; a claim, recorded with every file, "
        "and refused where files hold what cameras or recorders write",
    )
    consent: Reference | None = Field(
        default=None,
        description="of people: the consent record that covers the files "
        "(stillroom forensics consent writes one)",
    )
    basis: str = Field(
        default="",
        max_length=200,
        description="of people, where a detector learns from them and nothing leaves memory: the "
        "license or agreement they are used under",
    )

    @model_validator(mode="after")
    def _say_whose(self) -> Self:
        is_of_people = self.consent is not None or bool(self.basis)
        is_said = is_of_people or bool(self.synthetic_source)
        if is_of_people and self.synthetic_source:
            raise RecipeError(
                "the files are said to be of people, and of nobody",
                code="forensics.whose-faces",
                where=self.group,
                expected="consent or basis for files of people, or synthetic_source for those of "
                "nobody",
                next="leave out what is not true, or make two sets of two folders",
            )
        if self.folder is not None and not is_said:
            raise RecipeError(
                "nothing says whose faces or voices these are",
                code="forensics.whose-faces",
                where=self.group,
                expected="consent for files of people, or synthetic_source for those of nobody, "
                "beside folder",
                next="stillroom forensics consent --help, or leave folder out: faces and voices "
                "are then drawn",
            )
        if self.folder is None and is_said:
            raise RecipeError(
                "consent and synthetic_source are of a folder",
                code="forensics.whose-faces",
                where=self.group,
                expected="folder with them",
                next="name the folder, or leave both out",
            )
        return self


class FacesSettings(SourceSettings):
    """Whose faces, and how much of the picture about them."""

    margin: float = Field(
        default=1.9, ge=1, le=4, description="side of the square about a face, in face sizes"
    )


class AudioSettings(SourceSettings):
    """Forge sounds instead of faces: whose voices, by which methods, how long."""

    group: ClassVar[str] = "sound"
    methods: list[Annotated[AudioForgery, AUDIO_FORGERIES.choice("vocoder")]] = Field(
        default_factory=lambda: [AUDIO_FORGERIES.build("vocoder")],
        min_length=1,
        description="how sounds are forged; one is drawn by lot each time",
    )
    seconds: float = Field(
        default=4.0,
        ge=0.5,
        le=60,
        description="length of a sound, and of what a detector hears; sounds that are written need "
        "3",
    )
    snr: float = Field(
        default=18.0,
        ge=12,
        le=24,
        description="ratio of sound to watermark in dB; lower is surer, and up to 6 lower is taken "
        "where the mark cannot be read back",
    )


class MarkingSettings(Settings):
    """How strong the watermark is. That there is one is no setting."""

    psnr: float = Field(
        default=41.5, ge=36, le=44, description="quality of the marked image in dB; lower is surer"
    )


class SplitSettings(Settings):
    """Which share of the identities is for what; an identity is never in two splits."""

    held_out: float = Field(default=0.2, ge=0, le=0.9, description="share of identities to test on")
    validation: float = Field(
        default=0.1, ge=0, le=0.9, description="share of identities to calibrate on"
    )


class MediaOutputSettings(Settings):
    """The files that are written."""

    format: Literal["jpg", "png"] = Field(default="jpg", description="of every image alike")
    quality: int = Field(default=92, ge=40, le=100, description="of JPEG, real and fake alike")


_MODES = {
    "sound": "forges sounds",
    "detector": "learns a detector of faces, and writes no file",
    "sound detector": "learns a detector of sounds, and writes no file",
    "known": "learns from the fakes of a benchmark",
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
"""Of each thing that a recipe may do, the settings that then do nothing, and have to be left."""


def _is_of(recipe: ForensicsRecipe, mode: str) -> bool:
    detector, hears = recipe.detector, recipe.sound is not None
    if mode == "known":
        return detector is not None and detector.known is not None and not hears
    if mode == "detector":
        return detector is not None and not hears
    return hears and (mode == "sound" or detector is not None)


class ForensicsRecipe(Recipe):
    """Make forgeries for testing detectors, each with its mask, its real twin, and its marks."""

    kind: Literal["forensics"] = Field(default="forensics", description="make marked forgeries")
    method: Annotated[ImageForgery, IMAGE_FORGERIES.choice("sbi")] = Field(
        default="sbi",
        validate_default=True,
        description="how the fakes are made",
    )
    faces: FacesSettings = Field(
        default_factory=FacesSettings, description="whose faces are forged"
    )
    edits: list[Annotated[BenignEdit, BENIGN_EDITS.choice()]] = Field(
        default_factory=list,
        description="what is done to the real twins, drawn by lot; [] leaves them as they are",
    )
    count: int = Field(default=16, ge=1, le=100_000, description="fakes; each has one real twin")
    size: int = Field(default=256, ge=128, le=2048, description="width and height in pixels")
    workers: int = Field(
        default=1, ge=1, le=64, description="processes that forge; the bytes do not depend on it"
    )
    engine: EngineChoice = ENGINE
    marking: MarkingSettings = Field(
        default_factory=MarkingSettings, description="the marks of every file"
    )
    split: SplitSettings = Field(
        default_factory=SplitSettings, description="what the files are for"
    )
    out: MediaOutputSettings = Field(default_factory=MediaOutputSettings, description="the files")
    sound: AudioSettings | None = Field(
        default=None,
        description="forge sounds instead of faces: method, faces, edits, size, marking, out and "
        "workers are then without effect, and have to be left as they are",
    )
    detector: DetectorSettings | None = Field(
        default=None,
        description="learn a detector of these forgeries instead of writing them: its checkpoint "
        "is what the job leaves",
    )

    @model_validator(mode="after")
    def _hear_or_see(self) -> ForensicsRecipe:
        hears = self.detector is not None and self.detector.model.hears
        if self.detector is not None and hears != (self.sound is not None):
            name = self.detector.model.method_name()
            raise RecipeError(
                f"{name} judges {'sounds' if hears else 'faces'}",
                code="forensics.other-sense",
                where="detector.model",
                expected="the group 'sound' for lfcc and aasist, and none for other detectors",
                next="sound: {}" if hears else "detector.model=lfcc",
            )
        if (
            self.sound is not None
            and self.detector is None
            and self.sound.seconds < MIN_WATERMARK_SECONDS
        ):
            raise RecipeError(
                f"sounds of {self.sound.seconds:g} s are too short to carry a mark, and none is "
                "written without",
                code="forensics.too-short",
                where="sound.seconds",
                expected=(
                    f"at least {MIN_WATERMARK_SECONDS:g}, but where a detector learns "
                    "from them in memory"
                ),
                next="sound.seconds=4",
            )
        return self

    @model_validator(mode="after")
    def _set_what_counts(self) -> ForensicsRecipe:
        for mode, names in _UNUSED_SETTINGS.items():
            if not _is_of(self, mode):
                continue
            if idle := find_changed_settings(self, names):
                raise RecipeError(
                    f"the recipe {_MODES[mode]}: {', '.join(idle)} would do nothing",
                    code="forensics.other-sense" if "sound" in mode else "forensics.without-effect",
                    where=idle[0],
                    expected="what is without effect left as it is",
                    next=f"leave out {', '.join(idle)}",
                )
        return self

    @model_validator(mode="after")
    def _fakes_need_consent(self) -> ForensicsRecipe:
        if self.engine.ray is not None and (self.detector or self.sound) is not None:
            raise engine_error("detectors learn, and sounds are forged, on one machine")
        group = "sound" if self.sound is not None else "faces"
        if self.detector is None and (self.sound or self.faces).basis:
            raise RecipeError(
                f"{group}.basis is for detectors: fakes that are written need consent",
                code="forensics.whose-faces",
                where=f"{group}.basis",
                expected=f"{group}.consent for files of people",
                next="stillroom forensics consent --help, or add the group 'detector'",
            )
        return self
