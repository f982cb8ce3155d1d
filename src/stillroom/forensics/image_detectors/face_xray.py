"""Face X-ray: blending-boundary segmentation, and a score from it.

Source: Li et al. 2020, "Face X-ray for More General Face Forgery Detection", arXiv:1912.13458,
sections 3.1 (the X-ray is 4 M (1 - M) of the mask) and 3.3 (a map, then a classifier on it).
Differs: EfficientNet instead of HRNet, the map at an eighth of the image's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ImageDetector, PretrainedWeights

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["FaceXray"]


class FaceXray(ImageDetector):
    """A map of blending boundaries, and a classifier on it."""

    paper: ClassVar[str] = "arXiv:1912.13458"
    limitations: ClassVar[tuple[str, ...]] = (
        "It looks for the boundary of a blend: a picture made as a whole has none.",
    )
    backbone: str = Field(default="tf_efficientnet_lite0", description="model name in timm")
    weights: PretrainedWeights = Field(
        default="imagenet", description="initial weights: ImageNet, or random"
    )
    map_weight: float = Field(
        default=100.0, ge=0, description="weight of the map loss relative to the classifier's"
    )

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.cnn_streams import FaceXrayNetwork

        return FaceXrayNetwork(self.backbone, self.weights, self.map_weight)
