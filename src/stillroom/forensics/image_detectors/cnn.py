"""A convolutional baseline (timm backbone) on pixels; with self-blended images, the SBI detector.

Source: Roessler et al. 2019, "FaceForensics++", arXiv:1901.08971, section 5 (an ImageNet classifier
fine-tuned on face crops); with the forgery ``sbi`` it is the detector of Shiohara and Yamasaki
2022, arXiv:2204.08376. Differs: EfficientNet-Lite0 instead of Xception or B4, so that it trains in
minutes on a CPU; AdamW instead of SAM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import BackboneDetector

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Cnn"]


class Cnn(BackboneDetector):
    """A convolutional network on pixels."""

    paper: ClassVar[str] = "arXiv:1901.08971"
    limitations: ClassVar[tuple[str, ...]] = (
        "It detects only traces of the forgery methods that it was trained on.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of the features")

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.interfaces import Backbone, TwoStreamNetwork

        return TwoStreamNetwork(Backbone(self.backbone, self.weights, dropout=self.dropout))
