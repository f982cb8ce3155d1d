"""SPSL: the phase spectrum as a fourth input channel.

Source: Liu et al. 2021, "Spatial-Phase Shallow Learning: Rethinking Face Forgery Detection in
Frequency Domain", arXiv:2103.01856, section 3 (phase as an image; the first convolution's fourth
channel starts as the mean of the others). Differs: the network is not truncated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ImageDetector, PretrainedWeights

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Spsl"]


class Spsl(ImageDetector):
    """Pixels and their phase spectrum in one network."""

    paper: ClassVar[str] = "arXiv:2103.01856"
    preserve_pixels: ClassVar[bool] = True
    limitations: ClassVar[tuple[str, ...]] = (
        "It reads the traces of upsampling: a forgery without resampling need not show any.",
    )
    backbone: str = Field(default="tf_efficientnet_lite0", description="model name in timm")
    weights: PretrainedWeights = Field(
        default="imagenet", description="initial weights: ImageNet, or random"
    )

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.cnn_streams import PhaseImage, TwoStreamNetwork
        from stillroom.forensics.networks.interfaces import Backbone

        return TwoStreamNetwork(
            Backbone(self.backbone, self.weights, channels=4), extra=PhaseImage()
        )
