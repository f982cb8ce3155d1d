"""SRM: noise residuals of three fixed high-pass filters in addition to the image.

Source: Luo et al. 2021, "Generalizing Face Forgery Detection with High-frequency Features",
arXiv:2103.12376, section 3.2; the filters are those of Fridrich and Kodovsky 2012, "Rich Models for
Steganalysis of Digital Images", IEEE TIFS 7(3). Differs: residuals are input channels of one
network instead of a second stream with attention.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import BackboneDetector

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Srm", "compute_noise_residuals"]

_FILTERS = (
    ((0, 0, 0, 0, 0), (0, -1, 2, -1, 0), (0, 2, -4, 2, 0), (0, -1, 2, -1, 0), (0, 0, 0, 0, 0)),
    (
        (-1, 2, -2, 2, -1),
        (2, -6, 8, -6, 2),
        (-2, 8, -12, 8, -2),
        (2, -6, 8, -6, 2),
        (-1, 2, -2, 2, -1),
    ),
    ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0), (0, 1, -2, 1, 0), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0)),
)
_SCALES = (4.0, 12.0, 2.0)


class Srm(BackboneDetector):
    """High-pass residuals and pixels in one network."""

    paper: ClassVar[str] = "arXiv:2103.12376"
    preserve_pixels: ClassVar[bool] = True
    limitations: ClassVar[tuple[str, ...]] = (
        "It reads noise: strong compression, blur and resizing take away what it reads.",
    )
    limit: float = Field(
        default=3.0, gt=0, le=255, description="clipping of residuals, in levels of 8 bits"
    )

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.interfaces import Backbone, Function, TwoStreamNetwork

        residuals = Function(partial(compute_noise_residuals, limit=self.limit))
        return TwoStreamNetwork(Backbone(self.backbone, self.weights, channels=6), extra=residuals)


def compute_noise_residuals(images: Tensor, limit: float) -> Tensor:
    """Return three high-pass residuals of the luma, clipped, in [-1, 1]; (B, 3, H, W).

    Args:
        images: Images (B, 3, H, W) in [0, 1].
        limit: Clipping of residuals, in levels of 8 bits.
    """
    import torch
    from torch.nn import functional

    from stillroom.forensics.networks.interfaces import to_grayscale

    kernels = torch.tensor(_FILTERS) / torch.tensor(_SCALES)[:, None, None]
    kernels = kernels[:, None].float().to(images.device)
    gray = functional.pad(to_grayscale(images) * 255, (2, 2, 2, 2), mode="reflect")
    return functional.conv2d(gray, kernels).clamp(-limit, limit) / limit
