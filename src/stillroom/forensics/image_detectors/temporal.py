"""A temporal head over frame features of a trained image detector.

Source: Sabir et al. 2019, "Recurrent Convolutional Strategies for Face Manipulation Detection in
Videos", arXiv:1905.00582 (a recurrent network over a face detector's features); Zheng et al. 2021,
"Exploring Temporal Coherence for More General Video Face Forgery Detection", arXiv:2108.06693
(a transformer over time). Differs: the frame detector is frozen, and frame-to-frame differences are
added to its features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ImageDetector
from stillroom.recipes import Reference

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Temporal"]


class Temporal(ImageDetector):
    """A temporal network over the frame features of a trained image detector."""

    paper: ClassVar[str] = "arXiv:1905.00582"
    limitations: ClassVar[tuple[str, ...]] = (
        "It learned from pictures set in motion, whose forged twins flicker: a forgery that is "
        "steady over time, or a real face that moves otherwise, it does not know.",
    )
    checkpoint: Reference = Field(description="a trained image detector, which stays frozen")
    frames: int = Field(default=8, ge=2, le=64, description="frames of a face per input")
    mixer: Literal["gru", "conv", "transformer"] = Field(
        default="gru", description="temporal network: recurrent, convolutional, or attention"
    )
    width: int = Field(default=48, ge=8, le=512, description="features per frame")

    @property
    @override
    def num_frames(self) -> int:
        return self.frames

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.inference.trained_detector import build_temporal_head

        return build_temporal_head(self, Path(self.checkpoint), input_size)

    @override
    def rebuild(self, input_size: int, config: Mapping[str, Any]) -> DetectorNetwork:
        from stillroom.forensics.networks.vision_backbone import rebuild_temporal_head

        return rebuild_temporal_head(self, config)
