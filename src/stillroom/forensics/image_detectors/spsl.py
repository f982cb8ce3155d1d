"""SPSL: the phase spectrum as a fourth input channel.

Source: Liu et al. 2021, "Spatial-Phase Shallow Learning: Rethinking Face Forgery Detection in
Frequency Domain", arXiv:2103.01856, section 3 (phase as an image; the first convolution's fourth
channel starts as the mean of the others). Differs: the network is not truncated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.forensics.interfaces import BackboneDetector

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Spsl", "compute_phase_image"]


class Spsl(BackboneDetector):
    """Pixels and their phase spectrum in one network."""

    paper: ClassVar[str] = "arXiv:2103.01856"
    preserve_pixels: ClassVar[bool] = True
    limitations: ClassVar[tuple[str, ...]] = (
        "It reads the traces of upsampling: a forgery without resampling need not show any.",
    )

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.interfaces import Backbone, Function, TwoStreamNetwork

        body = Backbone(self.backbone, self.weights, channels=4)
        return TwoStreamNetwork(body, extra=Function(compute_phase_image))


def compute_phase_image(images: Tensor) -> Tensor:
    """Return the luma with all spectral amplitudes 1, scaled to unit deviation; (B, 1, H, W)."""
    import math

    import torch

    from stillroom.forensics.networks.interfaces import to_grayscale

    spectrum = torch.fft.fft2(to_grayscale(images).float())
    phase = torch.polar(torch.ones_like(spectrum.real), spectrum.angle())
    image: Tensor = torch.fft.ifft2(phase).real
    return image * math.sqrt(images.shape[-1] * images.shape[-2])
