"""Base classes and registries: ImageForgery, AudioForgery, BenignEdit, and Detector.

A forgery method makes a deepfake; a detector (classifier) scores one. Methods return arrays in
memory; only ``labeling`` writes files. Imports neither OpenCV nor torch,
so that a recipe can name methods.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.audio import AudioSamples, Waveform
    from stillroom.forensics.media.face_types import Face, Image, Mask
    from stillroom.forensics.networks.interfaces import DetectorNetwork
    from stillroom.models.encoders.vision import VisionModel

__all__ = [
    "AUDIO_DETECTORS",
    "AUDIO_FORGERIES",
    "BENIGN_EDITS",
    "IMAGE_DETECTORS",
    "IMAGE_FORGERIES",
    "MIN_WATERMARK_SECONDS",
    "AudioDetector",
    "AudioForgery",
    "BackboneDetector",
    "BenignEdit",
    "BlendMode",
    "CalibrationMethod",
    "ColorTransfer",
    "Detector",
    "ForgedAudio",
    "ForgedImage",
    "ImageDetector",
    "ImageForgery",
    "PretrainedWeights",
    "SourceType",
    "VisionDetector",
]

PretrainedWeights = Literal["imagenet", "none"]

SourceType = Literal[
    "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "algorithmicMedia"
]


@dataclass(frozen=True, eq=False)
class ForgedImage:
    """A forged image (H, W, 3), its forgery mask (H, W) in [0, 1], its twin, and the random draws.

    ``twin`` is the real counterpart after the same processing, so that the pair differs in the
    forgery only.
    """

    image: Image
    mask: Mask
    twin: Image
    details: Mapping[str, Any] = field(default_factory=dict)


class ImageForgery(Method):
    """Forge an image from one or two faces.

    Class variables: ``num_faces``; ``is_synthesized``, whether the method synthesizes the fake
    rather than taking it from a data set; ``source_type``, the digital source type in the
    credentials.
    """

    num_faces: ClassVar[int] = 1
    is_synthesized: ClassVar[bool] = True
    source_type: ClassVar[SourceType] = "compositeWithTrainedAlgorithmicMedia"

    @abstractmethod
    def forge(self, faces: Sequence[Face], rng: np.random.Generator) -> ForgedImage:
        """Forge the first face, using the second where the method needs one."""


@dataclass(frozen=True, eq=False)
class ForgedAudio:
    """A forged waveform (N,), its forgery mask (N,) in [0, 1], its real twin, and the random draws.

    All at ``SAMPLE_RATE``, in [-1, 1].
    """

    samples: AudioSamples
    mask: AudioSamples
    twin: AudioSamples
    details: Mapping[str, Any] = field(default_factory=dict)


class AudioForgery(Method):
    """Forge audio from one or two recordings; clones nobody's voice.

    Class variables: ``num_waveforms``; ``source_type``, the digital source type in the credentials.
    """

    num_waveforms: ClassVar[int] = 1
    source_type: ClassVar[SourceType] = "compositeWithTrainedAlgorithmicMedia"

    @abstractmethod
    def forge(self, waves: Sequence[Waveform], rng: np.random.Generator) -> ForgedAudio:
        """Forge the first recording, using the second where the method needs one."""


class BenignEdit(Method):
    """An everyday edit of a real image, which a detector must not report as forged."""

    @abstractmethod
    def edit(self, face: Face, rng: np.random.Generator) -> Image:
        """Return the edited image, (H, W, 3); all randomness comes from ``rng``."""


class Detector(Method):
    """Score faces or recordings as real or forged; a higher score means forged.

    Class variable: ``limitations``, known by design, one sentence each, repeated in the model card
    and in every verdict.
    """

    limitations: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self, input_size: int) -> DetectorNetwork:
        """Return the network with its initial weights.

        Args:
            input_size: Height and width of input images in pixels, or the number of samples of
                input waveforms.

        Raises:
            MissingExtraError: If a package that provides weights or a backbone is not installed.
            CheckpointError: If the named weights cannot be used.
        """

    def rebuild(self, input_size: int, config: Mapping[str, Any]) -> DetectorNetwork:
        """Return the network without its initial weights, which the caller then replaces.

        Args:
            input_size: As for ``build``.
            config: The network's saved ``config`` values besides its weights.
        """
        bare = {"weights": "none"} if "weights" in type(self).model_fields else {}
        return self.model_copy(update=bare).build(input_size)


class ImageDetector(Detector):
    """Score square crops around faces.

    Class variable: ``preserve_pixels``, whether the input is cropped at its native resolution
    instead of resized, since resizing adds or removes the traces that the network uses.
    """

    preserve_pixels: ClassVar[bool] = False


class BackboneDetector(ImageDetector):
    """Learn on a convolutional backbone of timm."""

    backbone: str = Field(default="tf_efficientnet_lite0", description="model name in timm")
    weights: PretrainedWeights = Field(
        default="imagenet", description="initial weights: ImageNet, or random"
    )


class VisionDetector(ImageDetector):
    """Tune small parts of a pretrained vision model."""

    checkpoint: Reference = Field(description="a vision model: CLIP, SigLIP, DINOv2, ViT")

    @abstractmethod
    def tune(self, vision: VisionModel) -> DetectorNetwork:
        """Return the network of a vision model."""

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.models.encoders.vision import load_vision

        return self.tune(load_vision(Path(self.checkpoint)))

    @override
    def rebuild(self, input_size: int, config: Mapping[str, Any]) -> DetectorNetwork:
        from stillroom.models.encoders.vision import build_vision

        return self.tune(build_vision(config))


class AudioDetector(Detector):
    """Score waveforms of one length."""


IMAGE_FORGERIES: Registry[ImageForgery] = Registry(
    "stillroom.forensics.synthesis.image_forgeries", ImageForgery
)

BENIGN_EDITS: Registry[BenignEdit] = Registry(
    "stillroom.forensics.synthesis.benign_edits", BenignEdit
)

AUDIO_FORGERIES: Registry[AudioForgery] = Registry(
    "stillroom.forensics.synthesis.audio_forgeries", AudioForgery
)

IMAGE_DETECTORS: Registry[ImageDetector] = Registry(
    "stillroom.forensics.image_detectors", ImageDetector
)

AUDIO_DETECTORS: Registry[AudioDetector] = Registry(
    "stillroom.forensics.audio_detectors", AudioDetector
)

BlendMode = Literal["alpha", "poisson", "laplacian"]
ColorTransfer = Literal["none", "mean", "reinhard", "transport"]
CalibrationMethod = Literal["platt", "temperature", "isotonic", "none"]
MIN_WATERMARK_SECONDS = 3.0
"""Minimum duration in seconds of audio that carries a watermark."""
