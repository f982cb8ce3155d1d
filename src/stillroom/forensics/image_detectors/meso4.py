"""Meso4: the four-convolution MesoNet, with importable published weights.

Source: Afchar et al. 2018, "MesoNet: a Compact Facial Video Forgery Detection Network",
arXiv:1809.00888, section 3.1 and its released code: batch norm after the activation, pooling by
2, 2, 2 and 4, features flattened channels last, and an output that is 1 for REAL. In this room a
higher score means forged: imported weights of the last layer are negated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.forensics.interfaces import ImageDetector

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Meso4"]


class Meso4(ImageDetector):
    """Four convolutions, published for faces of 256 pixels."""

    paper: ClassVar[str] = "arXiv:1809.00888"
    limitations: ClassVar[tuple[str, ...]] = (
        "Its published weights know the autoencoder swaps of 2018; on newer sets they were found "
        "inverted.",
    )

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.cnn_streams import MesoNet

        return MesoNet(input_size)
