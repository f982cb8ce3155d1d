"""The ``forensics`` job: build a labeled forgery set or train a detector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.forensics.extras import require_packages
from stillroom.forensics.recipe import ForensicsRecipe
from stillroom.jobs import Estimate, Job
from stillroom.provenance import Artifact

if TYPE_CHECKING:
    from stillroom.forensics.settings import DetectorSettings

__all__ = ["estimate", "run"]

_SECONDS_EACH = 0.12
_SECONDS_LEARNED = 0.035
_SECONDS_FORGED = 0.01
_SECONDS_SOUND = 0.018
# Audio detectors, by name or size: seconds and bytes per second of training audio.
_AUDIO_DETECTOR_COSTS = {
    "lfcc": (0.0045, 3_100_000),
    "tiny": (0.25, 67_000_000),
    "light": (0.58, 136_000_000),
    "full": (0.65, 160_000_000),
}


def run(recipe: ForensicsRecipe, job: Job) -> Artifact:
    """Build the data set, every file marked by the lab, or train the detector.

    Raises:
        DataError: If there are no faces or voices, or no consent for them.
        IntegrityError: If a file lacks a mark.
        Cancelled: If the user stopped it; ``--resume`` continues to the same content.
    """
    if recipe.detector is not None:
        return _train_detector(recipe, recipe.detector, job)
    if recipe.sound is not None:
        require_packages("av", "c2pa", "cryptography")
        from stillroom.forensics.synthesis.audio_dataset import build_audio_dataset

        return build_audio_dataset(recipe, recipe.sound, job)
    require_packages("cv2", "c2pa", "cryptography", "PIL")
    from stillroom.forensics.synthesis.image_dataset import build_image_dataset

    return build_image_dataset(recipe, job)


def _train_detector(recipe: ForensicsRecipe, settings: DetectorSettings, job: Job) -> Artifact:
    require_packages("av", *([] if recipe.sound else ["cv2", "PIL"]))
    from stillroom.forensics.training.train_detector import train_detector

    if recipe.sound is not None:
        from stillroom.forensics.training.train_audio import open_audio_data

        return train_detector(open_audio_data(recipe, settings, recipe.sound, job), job)
    from stillroom.forensics.training.train_image import open_image_data

    return train_detector(open_image_data(recipe, settings, job), job)


def estimate(recipe: ForensicsRecipe) -> Estimate:
    """Estimate the resources of a recipe from the size and number of its images."""
    if recipe.detector is not None:
        return _estimate_learning(recipe, recipe.detector)
    if recipe.sound is not None:
        return _estimate_sounds(recipe, recipe.sound.seconds)
    pixels = recipe.size**2
    share = pixels / 256**2
    return Estimate(
        memory_bytes=200_000_000 + recipe.workers * (120_000_000 + 200 * pixels),
        disk_bytes=int(recipe.count * (2 * pixels + 40_000)),
        seconds=recipe.count * _SECONDS_EACH * (2 * share + 1),
        memory_knob="lower workers",
        disk_knob="lower count or size, or write out.format=jpg",
        basis=f"{recipe.count} fakes and twins of {recipe.size}x{recipe.size} pixels",
    )


def _estimate_sounds(recipe: ForensicsRecipe, seconds: float) -> Estimate:
    """Estimate the resources of an audio data set, as measured with 4 seconds per file."""
    return Estimate(
        memory_bytes=int(250_000_000 + recipe.count * seconds * 64_000),
        disk_bytes=int(recipe.count * (2 * seconds * 32_000 + 40_000)),
        seconds=recipe.count * 0.1 * seconds,
        memory_knob="lower count or sound.seconds",
        disk_knob="lower count or sound.seconds",
        basis=f"{recipe.count} forged sounds and twins of {seconds:g} s",
    )


def _estimate_learning(recipe: ForensicsRecipe, settings: DetectorSettings) -> Estimate:
    """Estimate the resources of training, as measured with the default backbone at 128 pixels."""
    share = (settings.pixels / 128) ** 2
    seconds_each = _SECONDS_LEARNED * share + _SECONDS_FORGED * (recipe.size / 256) ** 2
    size = share * 40_000_000
    unit = f"faces and as many fakes of {settings.pixels}x{settings.pixels} pixels"
    knob = "detector.pixels"
    if recipe.sound is not None:
        share = recipe.sound.seconds
        name = getattr(settings.model, "size", settings.model.method_name())
        seconds_per_second, bytes_per_second = _AUDIO_DETECTOR_COSTS.get(
            name, _AUDIO_DETECTOR_COSTS["full"]
        )
        seconds_each, size = share * (_SECONDS_SOUND + seconds_per_second), share * bytes_per_second
        unit, knob = f"sounds and as many fakes of {share:g} s", "sound.seconds"
    steps = settings.train.count_steps(recipe.count)
    pairs = 2 * settings.train.batch_size
    return Estimate(
        memory_bytes=int(700_000_000 + pairs * size),
        disk_bytes=80_000_000,
        seconds=steps * pairs * seconds_each,
        memory_knob=f"lower detector.train.batch_size or {knob}",
        disk_knob="choose a smaller detector",
        basis=f"{steps} steps of {settings.train.batch_size} {unit}",
    )
