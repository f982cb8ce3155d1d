"""Forge labeled recordings, each with its mask, its real twin, and the marks of the lab."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillroom.forensics.extras import require_packages
from stillroom.forensics.interfaces import AUDIO_FORGERIES, MIN_WATERMARK_SECONDS, AudioForgery
from stillroom.forensics.settings import DrawnSource, SetVoices, SplitSettings
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.provenance import Artifact
from stillroom.recipes import DISTINCT, Recipe, Settings

__all__ = ["JOB_KIND", "AudioSetRecipe", "AudioWatermarkSettings", "estimate", "run"]


class AudioWatermarkSettings(Settings):
    """Strength of the watermark, which cannot be turned off."""

    snr: float = Field(
        default=18.0,
        ge=12,
        le=24,
        description="signal-to-watermark ratio in dB; a lower value is more robust, and up to 6 dB "
        "lower is used where the watermark cannot be read back",
    )


class AudioSetRecipe(Recipe):
    """Create labeled forged recordings, each with its mask and real twin."""

    kind: Literal["forensics.audio_set"] = Field(
        default="forensics.audio_set", description="create labeled forged recordings"
    )
    forgeries: Annotated[
        list[Annotated[AudioForgery, AUDIO_FORGERIES.choice("vocoder")]], DISTINCT
    ] = Field(
        default_factory=lambda: [AUDIO_FORGERIES.build("vocoder")],
        min_length=1,
        description="forgery methods; one is drawn at random per recording",
    )
    voices: SetVoices = Field(default_factory=DrawnSource, description="source of the voices")
    count: int = Field(default=16, ge=1, le=100_000, description="fakes; each has one real twin")
    seconds: float = Field(
        default=4.0,
        ge=MIN_WATERMARK_SECONDS,
        le=60,
        description="duration of a recording; shorter ones cannot carry a watermark",
    )
    split: SplitSettings = Field(default_factory=SplitSettings, description="identity splits")
    watermark: AudioWatermarkSettings = Field(
        default_factory=AudioWatermarkSettings, description="watermark of every file"
    )


def run(recipe: AudioSetRecipe, job: Job) -> Artifact:
    """Build the data set, every file marked by the lab; raises as ``build_audio_dataset``."""
    require_packages("av", "c2pa", "cryptography")
    from stillroom.forensics.synthesis.audio_dataset import build_audio_dataset

    return build_audio_dataset(recipe, job)


def estimate(recipe: AudioSetRecipe) -> Estimate:
    """Estimate the resources, as measured with 4 seconds per file."""
    seconds = recipe.count * recipe.seconds
    return Estimate(
        memory_bytes=int(250_000_000 + seconds * 64_000),
        disk_bytes=int(2 * seconds * 32_000 + recipe.count * 40_000),
        seconds=0.1 * seconds,
        memory_knob="lower count or seconds",
        disk_knob="lower count or seconds",
        basis=f"{recipe.count} forged recordings and twins of {recipe.seconds:g} s",
    )


JOB_KIND = JobKind(recipe=AudioSetRecipe, run=run, estimate=estimate)
