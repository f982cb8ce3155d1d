"""Meso4: the four-convolution MesoNet, with importable published weights.

Source: Afchar et al. 2018, "MesoNet: a Compact Facial Video Forgery Detection Network",
arXiv:1809.00888, section 3.1 and its released code: batch norm after the activation, pooling by
2, 2, 2 and 4, features flattened channels last, and an output that is 1 for REAL. In this room a
higher score means forged: imported weights of the last layer are negated.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.errors import DataError
from stillroom.forensics.interfaces import ImageDetector

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Meso4"]

_CHANNELS = (3, 8, 8, 16, 16)
_SIZES, _POOLS = (3, 5, 5, 5), (2, 2, 2, 4)
_EPSILON = 1e-3  # of Keras' batch norm


class Meso4(ImageDetector):
    """Four convolutions, published for faces of 256 pixels."""

    paper: ClassVar[str] = "arXiv:1809.00888"
    limitations: ClassVar[tuple[str, ...]] = (
        "Its published weights know the autoencoder swaps of 2018; on newer sets they were found "
        "inverted.",
    )

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        if input_size % 32:
            raise DataError(
                f"meso4 does not support {input_size} pixels",
                code="forensics.pixels",
                where="image_size",
                expected="a multiple of 32; 256 for its published weights",
                next="set image_size: 256",
            )
        from torch import nn
        from torch.nn import functional

        from stillroom.forensics.networks.interfaces import DetectorNetwork, DetectorOutput

        class MesoNet(DetectorNetwork):
            def __init__(self, pixels: int) -> None:
                super().__init__()
                channels = list(pairwise(_CHANNELS))
                self.convolutions = nn.ModuleList(
                    nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
                    for (in_channels, out_channels), size in zip(channels, _SIZES, strict=True)
                )
                self.norms = nn.ModuleList(
                    nn.BatchNorm2d(out_channels, eps=_EPSILON) for _, out_channels in channels
                )
                self.hidden = nn.Linear(_CHANNELS[-1] * (pixels // 32) ** 2, 16)
                self.head = nn.Linear(16, 1)
                self.dropout = nn.Dropout(0.5)

            def forward_features(self, images: Tensor) -> DetectorOutput:
                grid = images
                for convolution, norm, pool in zip(
                    self.convolutions, self.norms, _POOLS, strict=True
                ):
                    grid = functional.max_pool2d(norm(functional.relu(convolution(grid))), pool)
                flat = grid.permute(0, 2, 3, 1).flatten(1)  # (B, H W C): channels last, as in Keras
                features = functional.leaky_relu(self.hidden(self.dropout(flat)), 0.1)
                return DetectorOutput(self.head(self.dropout(features))[:, 0], features, grid)

        return MesoNet(input_size)
