"""SRM: noise residuals of three fixed high-pass filters in addition to the image.

Source: Luo et al. 2021, "Generalizing Face Forgery Detection with High-frequency Features",
arXiv:2103.12376, section 3.2; the filters are those of Fridrich and Kodovsky 2012, "Rich Models for
Steganalysis of Digital Images", IEEE TIFS 7(3). Differs: residuals are input channels of one
network instead of a second stream with attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ImageDetector, PretrainedWeights

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Srm"]


class Srm(ImageDetector):
    """High-pass residuals and pixels in one network."""

    paper: ClassVar[str] = "arXiv:2103.12376"
    preserve_pixels: ClassVar[bool] = True
    limitations: ClassVar[tuple[str, ...]] = (
        "It reads noise: strong compression, blur and resizing take away what it reads.",
    )
    backbone: str = Field(default="tf_efficientnet_lite0", description="model name in timm")
    weights: PretrainedWeights = Field(
        default="imagenet", description="initial weights: ImageNet, or random"
    )
    limit: float = Field(
        default=3.0, gt=0, le=255, description="clipping of residuals, in levels of 8 bits"
    )

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.cnn_streams import NoiseResidual, TwoStreamNetwork
        from stillroom.forensics.networks.interfaces import Backbone

        return TwoStreamNetwork(
            Backbone(self.backbone, self.weights, channels=6), extra=NoiseResidual(self.limit)
        )
