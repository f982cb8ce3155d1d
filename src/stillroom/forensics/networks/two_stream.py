"""TwoStreamNetwork: a network on pixels, on pixels and a front end's channels, or on the latter."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from stillroom.forensics.networks.interfaces import DetectorNetwork, DetectorOutput, Normalize

__all__ = ["TwoStreamNetwork", "make_dct_matrix"]


class TwoStreamNetwork(DetectorNetwork):
    """A network on pixels, on pixels and a front end's channels, or on the front end alone."""

    def __init__(
        self,
        body: nn.Module,
        *,
        extra: nn.Module | None = None,
        front_end: nn.Module | None = None,
    ) -> None:
        """Wrap ``body``, which returns a DetectorOutput."""
        super().__init__()
        self.normalize = Normalize()
        self.body, self.beside, self.instead = body, extra, front_end

    @property
    @override
    def reads_any_size(self) -> bool:
        return self.beside is None and self.instead is None

    @override
    def forward_features(self, images: Tensor) -> DetectorOutput:
        if self.instead is not None:
            inputs = self.instead(images)
        else:
            inputs = self.normalize(images)
            if self.beside is not None:
                inputs = torch.cat([inputs, self.beside(images)], dim=1)
        judged = self.body(inputs)
        if not isinstance(judged, DetectorOutput):
            raise TypeError(f"{type(self.body).__name__} did not return a DetectorOutput")
        return judged


def make_dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix, (size, size)."""
    index = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (index[None] + 0.5) * index[:, None])
    matrix *= math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()
