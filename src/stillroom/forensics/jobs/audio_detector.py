"""Train a detector of forged audio on forgeries of voices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillroom.forensics.extras import require_packages
from stillroom.forensics.interfaces import (
    AUDIO_DETECTORS,
    AUDIO_FORGERIES,
    AudioDetector,
    AudioForgery,
    CalibrationMethod,
)
from stillroom.forensics.settings import (
    AudioAugmentation,
    DetectorSource,
    DrawnSource,
    FitSettings,
    SplitSettings,
)
from stillroom.jobs import Estimate, Job
from stillroom.jobs.kind import JobKind
from stillroom.provenance import Artifact
from stillroom.recipes import DISTINCT, Recipe, Reference
from stillroom.train.replay import TrainingReplayer

__all__ = ["JOB_KIND", "AudioDetectorRecipe", "estimate", "run"]

_SECONDS_FORGED = 0.018  # per second of audio
# By name or size of the detector: seconds and bytes per second of training audio.
_COSTS = {
    "lfcc": (0.0045, 3_100_000),
    "tiny": (0.25, 67_000_000),
    "light": (0.58, 136_000_000),
    "full": (0.65, 160_000_000),
}


class AudioDetectorRecipe(Recipe):
    """Train a detector of forged audio; the artifact is its checkpoint."""

    kind: Literal["forensics.audio_detector"] = Field(
        default="forensics.audio_detector", description="train a detector of forged audio"
    )
    model: Annotated[AudioDetector, AUDIO_DETECTORS.choice("lfcc")] = Field(
        default="lfcc", validate_default=True, description="detector architecture"
    )
    forgeries: Annotated[
        list[Annotated[AudioForgery, AUDIO_FORGERIES.choice("vocoder")]], DISTINCT
    ] = Field(
        default_factory=lambda: [AUDIO_FORGERIES.build("vocoder")],
        min_length=1,
        description="forgery methods; one is drawn at random per pair",
    )
    voices: DetectorSource = Field(
        default_factory=DrawnSource,
        description="source of the voices; a detector of drawn ones is not valid for recordings",
    )
    count: int = Field(default=16, ge=9, le=100_000, description="maximum number of recordings")
    seconds: float = Field(
        default=4.0, ge=0.5, le=60, description="duration in seconds of the network's input"
    )
    split: SplitSettings = Field(default_factory=SplitSettings, description="speaker splits")
    augmentation: AudioAugmentation = Field(
        default_factory=AudioAugmentation, description="augmentation of both recordings of a pair"
    )
    train: FitSettings = Field(default_factory=FitSettings, description="optimizer and schedule")
    initial_weights: Reference | None = Field(
        default=None, description="detector of the same architecture for the initial weights"
    )
    calibration: CalibrationMethod = Field(
        default="platt",
        description="calibration of scores to probabilities, fitted on validation voices only",
    )
    shuffle_labels: bool = Field(
        default=False,
        description="control experiment: random labels, for which a sound protocol measures 0.5",
    )


def run(recipe: AudioDetectorRecipe, job: Job) -> Artifact:
    """Train the detector; raises as ``train_detector``."""
    require_packages("av")
    from stillroom.forensics.training.train_audio import open_audio_data
    from stillroom.forensics.training.train_detector import train_detector

    return train_detector(open_audio_data(recipe, job), job)


def estimate(recipe: AudioDetectorRecipe) -> Estimate:
    """Estimate the resources from the detector and the duration of its input."""
    name = getattr(recipe.model, "size", recipe.model.method_name())
    seconds, num_bytes = _COSTS.get(name, _COSTS["full"])
    steps, waveforms = recipe.train.count_steps(recipe.count), 2 * recipe.train.batch_size
    return Estimate(
        memory_bytes=int(700_000_000 + waveforms * recipe.seconds * num_bytes),
        disk_bytes=80_000_000,
        seconds=steps * waveforms * recipe.seconds * (_SECONDS_FORGED + seconds),
        memory_knob="lower train.batch_size or seconds",
        disk_knob="choose a smaller detector",
        basis=f"{steps} steps of {recipe.train.batch_size} recordings and as many fakes of "
        f"{recipe.seconds:g} s",
    )


JOB_KIND = JobKind(
    recipe=AudioDetectorRecipe, run=run, estimate=estimate, replayer=TrainingReplayer()
)
