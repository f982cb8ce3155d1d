"""Neighboring pixel relationships (NPR): residuals of nearest-neighbor upsampling.

Source: Tan et al. 2024, "Rethinking the Up-Sampling Operations in CNN-based Generative Network for
Generalizable Deepfake Detection", arXiv:2312.10461, equations 3 to 5 and its released code (the
factor 2/3, ResNet-50 cut after its second stage).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ImageDetector

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Npr"]


class Npr(ImageDetector):
    """Differences of neighboring pixels with a short residual network."""

    paper: ClassVar[str] = "arXiv:2312.10461"
    preserve_pixels: ClassVar[bool] = True
    limitations: ClassVar[tuple[str, ...]] = (
        "It reads the grid of upsampling: resizing a picture removes that grid, or adds one.",
        "A face swapped into a real picture need not leave the grid it reads.",
    )
    width: int = Field(default=64, ge=8, le=64, description="channels of the first stage")

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.cnn_streams import (
            NeighborResidual,
            ShortResNet,
            TwoStreamNetwork,
        )

        return TwoStreamNetwork(ShortResNet(self.width), front_end=NeighborResidual())
