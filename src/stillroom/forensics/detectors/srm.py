"""SRM: noise residuals of three fixed high-pass filters beside the image.

Source: Luo et al. 2021, "Generalizing Face Forgery Detection with High-frequency Features",
arXiv:2103.12376, section 3.2; the filters are those of Fridrich and Kodovsky 2012, "Rich Models for
Steganalysis of Digital Images", IEEE TIFS 7(3). Differs: residuals join the picture as channels of
one network instead of a second one with attention between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import Detector, PretrainedWeights

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Srm"]


class Srm(Detector):
    """High-pass residuals and pixels in one network."""

    paper: ClassVar[str] = "arXiv:2103.12376"
    keeps_pixels: ClassVar[bool] = True
    blind: ClassVar[tuple[str, ...]] = (
        "It reads noise: strong compression, blur and resizing take away what it reads.",
    )
    backbone: str = Field(default="tf_efficientnet_lite0", description="timm's name of a network")
    weights: PretrainedWeights = Field(
        default="imagenet", description="what it starts from: ImageNet's weights, or random ones"
    )
    limit: float = Field(
        default=3.0, gt=0, le=255, description="residuals are cut off here, in steps of 8 bits"
    )

    @override
    def build(self, pixels: int) -> DetectorNetwork:
        from stillroom.forensics.networks.cnn_streams import NoiseResidual, TwoStreamNetwork
        from stillroom.forensics.networks.interfaces import Backbone

        return TwoStreamNetwork(
            Backbone(self.backbone, self.weights, channels=6), beside=NoiseResidual(self.limit)
        )
