"""F3-Net: frequency-aware decomposition into bands of the cosine transform.

Source: Qian et al. 2020, "Thinking in Frequency: Face Forgery Detection by Mining Frequency-aware
Clues", arXiv:2007.09355, section 3.1 (FAD). Differs: the second branch (LFS) and the attention
between branches are omitted, as is common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ImageDetector, PretrainedWeights

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["F3net"]


class F3net(ImageDetector):
    """DCT bands, each as an image."""

    paper: ClassVar[str] = "arXiv:2007.09355"
    preserve_pixels: ClassVar[bool] = True
    limitations: ClassVar[tuple[str, ...]] = (
        "It reads frequencies: strong compression, blur and resizing take away what it reads.",
    )
    backbone: str = Field(default="tf_efficientnet_lite0", description="model name in timm")
    weights: PretrainedWeights = Field(
        default="imagenet", description="initial weights: ImageNet, or random"
    )

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.cnn_streams import FrequencyBands, TwoStreamNetwork
        from stillroom.forensics.networks.interfaces import Backbone

        body = Backbone(self.backbone, self.weights, channels=12, widen="repeat")
        return TwoStreamNetwork(body, front_end=FrequencyBands(input_size))
