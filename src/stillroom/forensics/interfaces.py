"""Base classes and seams: ImageForgery, AudioForgery, BenignEdit, and Detector.

What a method returns is an array in memory. Nothing here writes a file: that is ``marking`` alone.
Imports neither OpenCV nor torch, so that a recipe can name methods.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.audio import AudioSamples, Waveform
    from stillroom.forensics.media.face import Face, Image, Mask
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = [
    "AUDIO_FORGERIES",
    "BENIGN_EDITS",
    "DETECTORS",
    "IMAGE_FORGERIES",
    "MIN_WATERMARK_SECONDS",
    "AudioForgery",
    "BenignEdit",
    "BlendMode",
    "CalibrationMethod",
    "ColorTransfer",
    "Detector",
    "ForgedAudio",
    "ForgedImage",
    "ImageForgery",
    "PretrainedWeights",
    "SourceType",
]


SourceType = Literal[
    "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "algorithmicMedia"
]


@dataclass(frozen=True, eq=False)
class ForgedImage:
    """A forgery: the image (H, W, 3), where it is forged (H, W) in [0, 1], what was drawn by lot.

    ``twin`` is the real counterpart that went through the same treatment, so that nothing but the
    forgery tells the two apart.
    """

    image: Image
    mask: Mask
    twin: Image
    details: Mapping[str, Any] = field(default_factory=dict)


class ImageForgery(Method):
    """Makes a forged image from one or two faces.

    Class variables: ``faces_needed``; ``is_made``, whether the fake is made here, and not kept as
    it came; ``source_type``, what the file's credentials call it.
    """

    faces_needed: ClassVar[int] = 1
    is_made: ClassVar[bool] = True
    source_type: ClassVar[SourceType] = "compositeWithTrainedAlgorithmicMedia"

    @abstractmethod
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> ForgedImage:
        """Forge the first face, with the second where one is needed.

        Args:
            faces: ``faces_needed`` faces; the first one's picture is the target.
            rng: All chance comes from here.
        """


@dataclass(frozen=True, eq=False)
class ForgedAudio:
    """A forged sound (N,), where it is forged (N,) in [0, 1], its real twin, what was drawn by lot.

    All are at ``waves.RATE``, in [-1, 1].
    """

    values: AudioSamples
    mask: AudioSamples
    twin: AudioSamples
    details: Mapping[str, Any] = field(default_factory=dict)


class AudioForgery(Method):
    """Makes a forged sound from one or two recordings; imitates nobody's voice.

    Class variables: ``waves_needed``; ``source_type``, what the file's credentials call it.
    """

    waves_needed: ClassVar[int] = 1
    source_type: ClassVar[SourceType] = "compositeWithTrainedAlgorithmicMedia"

    @abstractmethod
    def forge(self, waves: Sequence[Waveform], rng: np.random.Generator) -> ForgedAudio:
        """Forge the first recording, with the second where one is needed.

        Args:
            waves: ``waves_needed`` recordings.
            rng: All chance comes from here.
        """


class BenignEdit(Method):
    """What people do to real pictures every day, and a detector must not call forged."""

    @abstractmethod
    def edit(self, face: Face, rng: np.random.Generator) -> Image:
        """Return the edited picture, (H, W, 3); all chance comes from ``rng``."""


class Detector(Method):
    """Tells forged faces from real ones by their pixels; a higher score is forged.

    Class variables: ``blind``, what it cannot see by its very making, a sentence each, which its
    model card and every verdict repeat; ``keeps_pixels``, whether it looks at pixels as they came,
    cut out and not resized, since resizing makes or removes the traces that it knows; ``hears``,
    whether it judges sounds instead of faces.
    """

    blind: ClassVar[tuple[str, ...]] = ()
    keeps_pixels: ClassVar[bool] = False
    hears: ClassVar[bool] = False

    @property
    def looks_at(self) -> int:
        """How many frames of a face make up one thing that it judges; 1 for pictures."""
        return 1

    @abstractmethod
    def build(self, pixels: int) -> DetectorNetwork:
        """Return the network with its starting weights.

        Args:
            pixels: Height and width of the pictures it will be given.

        Raises:
            MissingExtraError: If a package that brings weights or a backbone is not here.
            CheckpointError: If the weights named cannot be used.
        """

    def rebuild(self, pixels: int, kept: Mapping[str, Any]) -> DetectorNetwork:
        """Return the network without its starting weights, which are about to be replaced.

        Args:
            pixels: As for ``build``.
            kept: What the network had to be ``kept`` of it beside its weights.
        """
        bare = {"weights": "none"} if "weights" in type(self).model_fields else {}
        return self.model_copy(update=bare).build(pixels)


IMAGE_FORGERIES: Registry[ImageForgery] = Registry(
    "stillroom.forensics.synthesis.image_forgeries", ImageForgery
)


BENIGN_EDITS: Registry[BenignEdit] = Registry(
    "stillroom.forensics.synthesis.benign_edits", BenignEdit
)


AUDIO_FORGERIES: Registry[AudioForgery] = Registry(
    "stillroom.forensics.synthesis.audio_forgeries", AudioForgery
)


DETECTORS: Registry[Detector] = Registry("stillroom.forensics.detectors", Detector)


BlendMode = Literal["alpha", "poisson", "laplacian"]


ColorTransfer = Literal["none", "mean", "reinhard", "transport"]


CalibrationMethod = Literal["platt", "temperature", "isotonic", "none"]


PretrainedWeights = Literal["imagenet", "none"]


MIN_WATERMARK_SECONDS = 3.0


"""Seconds of sound that carry a watermark, at least."""
