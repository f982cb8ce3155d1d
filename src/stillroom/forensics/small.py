"""The four-convolution network of MesoNet."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.forensics.networks import Judged, Network

__all__ = ["SmallStack"]

_CHANNELS = (3, 8, 8, 16, 16)
_SIZES, _POOLS = (3, 5, 5, 5), (2, 2, 2, 4)
_EPSILON = 1e-3  # Keras' batch norm


class SmallStack(Network):
    """Convolution, activation, batch norm and pooling, four times; then 16 units and one."""

    def __init__(self, pixels: int) -> None:
        """Take pictures of ``pixels`` squared, a multiple of 32."""
        super().__init__()
        if pixels % 32:
            raise DataError(
                f"meso4 cannot look at {pixels} pixels",
                code="forensics.pixels",
                where="detector.pixels",
                expected="a multiple of 32; its published weights are of 256",
                next="set detector.pixels: 256",
            )
        channels = list(pairwise(_CHANNELS))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(given, made, size, padding=size // 2)
            for (given, made), size in zip(channels, _SIZES, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(made, eps=_EPSILON) for _, made in channels)
        self.hidden = nn.Linear(_CHANNELS[-1] * (pixels // 32) ** 2, 16)
        self.head = nn.Linear(16, 1)
        self.dropout = nn.Dropout(0.5)

    @override
    def judge(self, images: Tensor) -> Judged:
        grid = images
        for convolution, norm, pool in zip(self.convolutions, self.norms, _POOLS, strict=True):
            grid = functional.max_pool2d(norm(functional.relu(convolution(grid))), pool)
        flat = grid.permute(0, 2, 3, 1).flatten(1)  # (B, H W C): places first, as Keras has it
        features = functional.leaky_relu(self.hidden(self.dropout(flat)), 0.1)
        return Judged(self.head(self.dropout(features))[:, 0], features, grid)
