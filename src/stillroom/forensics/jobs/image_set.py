"""Forge labeled images, each with its mask, its real twin, and the marks of the lab."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillroom.forensics.extras import require_packages
from stillroom.forensics.interfaces import BENIGN_EDITS, IMAGE_FORGERIES, BenignEdit, ImageForgery
from stillroom.forensics.settings import DrawnSource, SetFaces, SplitSettings
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.provenance import Artifact
from stillroom.recipes import DISTINCT, ENGINE, EngineChoice, Recipe, Settings

__all__ = [
    "JOB_KIND",
    "ImageSetRecipe",
    "ImageWatermarkSettings",
    "JpegOutput",
    "PngOutput",
    "estimate",
    "run",
]

_SECONDS_EACH = 0.12


class ImageWatermarkSettings(Settings):
    """Strength of the watermark, which cannot be turned off."""

    psnr: float = Field(
        default=41.5,
        ge=36,
        le=44,
        description="PSNR of the marked image in dB; lower is more robust",
    )


class JpegOutput(Settings):
    """JPEG files."""

    format: Literal["jpg"] = Field(default="jpg", description="file format of all images")
    quality: int = Field(default=92, ge=40, le=100, description="JPEG quality of real and fake")


class PngOutput(Settings):
    """PNG files."""

    format: Literal["png"] = Field(description="file format of all images")


class ImageSetRecipe(Recipe):
    """Create labeled forged images, each with its mask and real twin."""

    kind: Literal["forensics.image_set"] = Field(
        default="forensics.image_set", description="create labeled forged images"
    )
    forgery: Annotated[ImageForgery, IMAGE_FORGERIES.choice("sbi")] = Field(
        default="sbi", validate_default=True, description="forgery method"
    )
    faces: SetFaces = Field(default_factory=DrawnSource, description="source of the faces")
    benign_edits: Annotated[list[Annotated[BenignEdit, BENIGN_EDITS.choice()]], DISTINCT] = Field(
        default_factory=list,
        description="benign edits of the real twins, drawn at random; [] leaves them unedited",
    )
    count: int = Field(default=16, ge=1, le=100_000, description="fakes; each has one real twin")
    image_size: int = Field(default=256, ge=128, le=2048, description="width and height in pixels")
    split: SplitSettings = Field(default_factory=SplitSettings, description="identity splits")
    watermark: ImageWatermarkSettings = Field(
        default_factory=ImageWatermarkSettings, description="watermark of every file"
    )
    output: JpegOutput | PngOutput = Field(
        default_factory=JpegOutput, discriminator="format", description="output files"
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="forging processes; the output bytes do not depend on it",
    )
    engine: EngineChoice = ENGINE


def run(recipe: ImageSetRecipe, job: Job) -> Artifact:
    """Build the data set, every file marked by the lab; raises as ``build_image_dataset``."""
    require_packages("cv2", "c2pa", "cryptography", "PIL")
    from stillroom.forensics.synthesis.image_dataset import build_image_dataset

    return build_image_dataset(recipe, job)


def estimate(recipe: ImageSetRecipe) -> Estimate:
    """Estimate the resources from the size and number of the images."""
    pixels = recipe.image_size**2
    return Estimate(
        memory_bytes=200_000_000 + recipe.workers * (120_000_000 + 200 * pixels),
        disk_bytes=int(recipe.count * (2 * pixels + 40_000)),
        seconds=recipe.count * _SECONDS_EACH * (2 * pixels / 256**2 + 1),
        memory_knob="lower workers",
        disk_knob="lower count or image_size, or write output.format=jpg",
        basis=f"{recipe.count} fakes and twins of {recipe.image_size}x{recipe.image_size} pixels",
    )


JOB_KIND = JobKind(recipe=ImageSetRecipe, run=run, estimate=estimate)
