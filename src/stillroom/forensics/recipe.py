"""ForensicsRecipe: which faces are forged how, how many, how split; and who learns from them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.errors import RecipeError
from stillroom.forensics.detector_settings import DetectorSettings
from stillroom.forensics.method import EDITS, FORGERIES, Edit, Forgery
from stillroom.recipes import Recipe, Reference, Settings

__all__ = ["FacesSettings", "ForensicsRecipe", "MarkingSettings", "OutSettings", "SplitSettings"]


class FacesSettings(Settings):
    """Whose faces. Without a folder they are drawn by program, and are nobody's."""

    folder: Reference | None = Field(
        default=None, description="pictures to start from; null draws faces, which are nobody's"
    )
    synthetic_source: str = Field(
        default="",
        max_length=200,
        description="of pictures of nobody: the generator that made them; kept with every file",
    )
    consent: Reference | None = Field(
        default=None,
        description="of pictures of people: the consent record that covers them "
        "(stillroom forensics consent writes one)",
    )
    basis: str = Field(
        default="",
        max_length=200,
        description="of pictures of people that a detector learns from and that never leave "
        "memory: the license or agreement they are used under",
    )
    margin: float = Field(
        default=1.9, ge=1, le=4, description="side of the square about a face, in face sizes"
    )

    @model_validator(mode="after")
    def _say_whose(self) -> FacesSettings:
        is_said = self.synthetic_source or self.consent is not None or self.basis
        if self.folder is not None and not is_said:
            raise RecipeError(
                "nothing says whose faces these are",
                code="forensics.whose-faces",
                where="faces",
                expected="faces.consent for pictures of people, or faces.synthetic_source for "
                "pictures of nobody",
                next="stillroom forensics consent --help, or leave faces.folder out: faces are "
                "then drawn",
            )
        if self.folder is None and is_said:
            raise RecipeError(
                "faces.consent and faces.synthetic_source are of a folder",
                code="forensics.whose-faces",
                where="faces",
                expected="faces.folder with them",
                next="name the folder, or leave both out",
            )
        return self


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


class OutSettings(Settings):
    """The files that are written."""

    format: Literal["jpg", "png"] = Field(default="jpg", description="of every image alike")
    quality: int = Field(default=92, ge=40, le=100, description="of JPEG, real and fake alike")


class ForensicsRecipe(Recipe):
    """Make forgeries for testing detectors, each with its mask, its real twin, and its marks."""

    kind: Literal["forensics"] = Field(default="forensics", description="make marked forgeries")
    method: Annotated[Forgery, FORGERIES.choice("sbi")] = Field(
        default="sbi",
        validate_default=True,
        description="how the fakes are made",
    )
    faces: FacesSettings = Field(
        default_factory=FacesSettings, description="whose faces are forged"
    )
    edits: list[Annotated[Edit, EDITS.choice()]] = Field(
        default_factory=list,
        description="what is done to the real twins, drawn by lot; [] leaves them as they are",
    )
    count: int = Field(default=16, ge=1, le=100_000, description="fakes; each has one real twin")
    size: int = Field(default=256, ge=128, le=2048, description="width and height in pixels")
    workers: int = Field(
        default=1, ge=1, le=64, description="processes that forge; the bytes do not depend on it"
    )
    marking: MarkingSettings = Field(
        default_factory=MarkingSettings, description="the marks of every file"
    )
    split: SplitSettings = Field(
        default_factory=SplitSettings, description="what the files are for"
    )
    out: OutSettings = Field(default_factory=OutSettings, description="the files")
    detector: DetectorSettings | None = Field(
        default=None,
        description="learn a detector of these forgeries instead of writing them: its checkpoint "
        "is what the job leaves",
    )

    @model_validator(mode="after")
    def _fakes_need_consent(self) -> ForensicsRecipe:
        if self.detector is None and self.faces.basis:
            raise RecipeError(
                "faces.basis is for detectors: fakes that are written need consent",
                code="forensics.whose-faces",
                where="faces.basis",
                expected="faces.consent for pictures of people",
                next="stillroom forensics consent --help, or add the group 'detector'",
            )
        return self
