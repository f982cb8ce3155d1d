"""Neighboring pixel relationships (NPR): residuals of nearest-neighbor upsampling.

Source: Tan et al. 2024, "Rethinking the Up-Sampling Operations in CNN-based Generative Network for
Generalizable Deepfake Detection", arXiv:2312.10461, equations 3 to 5 and its released code (the
factor 2/3, ResNet-50 cut after its second stage).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ImageDetector

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Npr", "compute_neighbor_residual"]


class Npr(ImageDetector):
    """Differences of neighboring pixels with a short residual network."""

    paper: ClassVar[str] = "arXiv:2312.10461"
    preserve_pixels: ClassVar[bool] = True
    limitations: ClassVar[tuple[str, ...]] = (
        "It reads the grid of upsampling: resizing a picture removes that grid, or adds one.",
        "A face swapped into a real picture need not leave the grid it reads.",
    )
    width: int = Field(default=64, ge=8, le=64, description="channels of the first stage")

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.interfaces import Function, TwoStreamNetwork

        front_end = Function(compute_neighbor_residual)
        return TwoStreamNetwork(_make_short_resnet(self.width), front_end=front_end)


def compute_neighbor_residual(images: Tensor) -> Tensor:
    """Return images minus their nearest-neighbor resampling, times 2/3; sizes are made even."""
    even = images[..., : images.shape[-2] // 2 * 2, : images.shape[-1] // 2 * 2]
    halved = even[..., ::2, ::2]
    doubled = halved.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return (even - doubled) * (2 / 3) * 2  # inputs in [-1, 1] double the differences


def _make_short_resnet(width: int) -> nn.Module:
    """Return the first two stages of a ResNet-50, with one logit; they start with ``width``."""
    from torch import nn

    from stillroom.forensics.networks.interfaces import DetectorOutput

    class ShortResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(
                nn.Conv2d(3, width, 3, 2, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, 2, 1),
            )
            blocks: list[nn.Module] = []
            inner, wide = width, width
            for stage, count in enumerate((3, 4)):
                for index in range(count):
                    blocks.append(_make_bottleneck(wide, inner, 2 if stage and not index else 1))
                    wide = inner * 4
                inner *= 2
            self.blocks = nn.Sequential(*blocks)
            self.head = nn.Linear(wide, 1)

        def forward(self, inputs: Tensor) -> DetectorOutput:
            grid = self.blocks(self.stem(inputs))  # (B, 8 width, h, w)
            features = grid.mean((2, 3))
            return DetectorOutput(self.head(features)[:, 0], features, grid)

    return ShortResNet()


def _make_bottleneck(wide: int, inner: int, stride: int) -> nn.Module:
    """Return 1x1, 3x3, 1x1 convolutions with a shortcut (He et al. 2015, arXiv:1512.03385)."""
    from torch import nn
    from torch.nn import functional

    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(wide, inner, 1, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner, inner * 4, 1, bias=False),
                nn.BatchNorm2d(inner * 4),
            )
            self.shortcut: nn.Module = nn.Identity()
            if stride != 1 or wide != inner * 4:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(wide, inner * 4, 1, stride, bias=False), nn.BatchNorm2d(inner * 4)
                )

        def forward(self, inputs: Tensor) -> Tensor:
            return functional.relu(self.body(inputs) + self.shortcut(inputs))

    return Bottleneck()
