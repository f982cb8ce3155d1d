"""A convolutional baseline on pixels; trained on self-blended images, the SBI detector.

Source: Roessler et al. 2019, "FaceForensics++", arXiv:1901.08971, section 5 (a classifier that was
trained on ImageNet, on face crops); with the forgery ``sbi`` it is the detector of Shiohara and
Yamasaki 2022, arXiv:2204.08376. Differs: EfficientNet-Lite0 instead of Xception or B4, so that
minutes on a CPU suffice; AdamW instead of SAM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import Detector, PretrainedWeights

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Cnn"]


class Cnn(Detector):
    """A convolutional network on pixels."""

    paper: ClassVar[str] = "arXiv:1901.08971"
    blind: ClassVar[tuple[str, ...]] = (
        "It knows the traces of the forgeries it learned from, and no others.",
    )
    backbone: str = Field(default="tf_efficientnet_lite0", description="timm's name of a network")
    weights: PretrainedWeights = Field(
        default="imagenet", description="what it starts from: ImageNet's weights, or random ones"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of features left out")

    @override
    def build(self, pixels: int) -> DetectorNetwork:
        from stillroom.forensics.networks.cnn_streams import TwoStreamNetwork
        from stillroom.forensics.networks.interfaces import Backbone

        return TwoStreamNetwork(Backbone(self.backbone, self.weights, dropout=self.dropout))
