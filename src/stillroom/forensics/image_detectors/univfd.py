"""UnivFD: a linear probe on a frozen vision model.

Source: Ojha et al. 2023, "Towards Universal Fake Image Detectors that Generalize Across Generative
Models", arXiv:2302.10174, section 4.2 (linear classification of CLIP's features). Takes any vision
model of transformers; the paper's is CLIP ViT-L/14.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.forensics.interfaces import VisionDetector

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork
    from stillroom.models.encoders.vision import VisionModel

__all__ = ["Univfd"]


class Univfd(VisionDetector):
    """A frozen vision model with one linear output."""

    paper: ClassVar[str] = "arXiv:2302.10174"
    limitations: ClassVar[tuple[str, ...]] = (
        "It sees what the vision model was taught to see: small seams need not be among it.",
    )

    @override
    def tune(self, vision: VisionModel) -> DetectorNetwork:
        from stillroom.forensics.networks.interfaces import VisionBackbone

        return VisionBackbone(vision)
