"""LFCC: linear-frequency cepstral coefficients and a small max-feature-map network.

Source: Sahidullah et al. 2015, "A comparison of features for synthetic speech detection",
Interspeech (linear filters, 20 coefficients with deltas); Lavrentyeva et al. 2019,
"STC antispoofing systems for the ASVspoof2019 challenge", arXiv:1904.05576 (the light network of
Wu et al. 2018 on them). Differs: fewer layers.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import AudioDetector

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Lfcc"]

_LENGTH, _WINDOW, _HOP = 512, 320, 160
_MIN_POWER = 1e-7


class Lfcc(AudioDetector):
    """Linear-frequency cepstral coefficients with a light network."""

    paper: ClassVar[str] = "arXiv:1904.05576"
    limitations: ClassVar[tuple[str, ...]] = (
        "It detects traces of the vocoders that it was trained on; for other vocoders, or with "
        "reverberation, its scores are not reliable.",
    )
    width: int = Field(default=24, ge=4, le=256, description="channels of the first layer")
    filters: int = Field(default=20, ge=8, le=128, description="linear filters, and coefficients")

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        import torch
        from torch import nn

        from stillroom.forensics.networks.interfaces import (
            DetectorNetwork,
            DetectorOutput,
            Function,
        )

        class LfccNetwork(DetectorNetwork):
            def __init__(self, width: int, filters: int) -> None:
                super().__init__()
                self.front = _make_frontend(filters)
                self.scale = nn.BatchNorm2d(3)
                sizes = (3, width, 2 * width, 2 * width, width)
                blocks: list[nn.Module] = []
                for number, (in_channels, out_channels) in enumerate(pairwise(sizes)):
                    blocks += [
                        nn.Conv2d(
                            in_channels, 2 * out_channels, 5 if number == 0 else 3, padding="same"
                        ),
                        Function(_take_feature_maximum),
                        nn.BatchNorm2d(out_channels),
                    ]
                    blocks += [nn.MaxPool2d(2)] if number < len(sizes) - 2 else []
                self.blocks = nn.Sequential(*blocks)
                self.dropout = nn.Dropout(0.3)
                self.head = nn.Linear(2 * width, 1)

            def forward_features(self, waveforms: Tensor) -> DetectorOutput:
                grid = self.blocks(
                    self.scale(self.front(waveforms))
                )  # (B, width, filters / 8, T / 8)
                along = grid.mean(2)
                features = torch.cat([along.mean(2), along.std(2, correction=0)], dim=1)
                return DetectorOutput(self.head(self.dropout(features))[:, 0], features)

        return LfccNetwork(self.width, self.filters)


def _take_feature_maximum(inputs: Tensor) -> Tensor:
    """Return the elementwise maximum of the two halves of the channels."""
    import torch

    first, second = inputs.chunk(2, dim=1)
    return torch.maximum(first, second)


def _make_frontend(filters: int) -> nn.Module:
    """Return a front end: cepstral coefficients with first and second deltas, (B, 3, filters, T).

    Its ``filters`` triangular filters are evenly spaced from 0 to half the sample rate.
    """
    import math

    import torch
    from torch import nn
    from torch.nn import functional

    from stillroom.forensics.media.audio import SAMPLE_RATE

    class LfccFrontend(nn.Module):
        bank: Tensor
        cosine: Tensor
        window: Tensor

        def __init__(self, filters: int) -> None:
            super().__init__()
            edges = torch.linspace(0, SAMPLE_RATE / 2, filters + 2)
            frequency = torch.linspace(0, SAMPLE_RATE / 2, _LENGTH // 2 + 1)
            left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
            bank = torch.minimum(
                (frequency - left) / (middle - left), (right - frequency) / (right - middle)
            )
            self.register_buffer("bank", bank.clamp(min=0), persistent=False)
            index = torch.arange(filters)
            cosine = torch.cos(math.pi / filters * (index[None] + 0.5) * index[:, None])
            cosine = cosine * math.sqrt(2 / filters)
            cosine[0] /= math.sqrt(2)
            self.register_buffer("cosine", cosine, persistent=False)
            self.register_buffer("window", torch.hamming_window(_WINDOW), persistent=False)

        def forward(self, waves: Tensor) -> Tensor:
            raised = waves - 0.97 * functional.pad(waves, (1, 0))[:, :-1]  # pre-emphasis
            frames = raised.unfold(1, _WINDOW, _HOP) * self.window  # (B, T, window)
            power = torch.fft.rfft(frames, _LENGTH).abs().square()
            energy = (power @ self.bank.T + _MIN_POWER).log()  # (B, T, filters)
            plain = (energy @ self.cosine.T).transpose(1, 2)  # (B, filters, T)
            first = _compute_delta(plain)
            return torch.stack([plain, first, _compute_delta(first)], dim=1)

    return LfccFrontend(filters)


def _compute_delta(values: Tensor) -> Tensor:
    """Return the slope over five frames, of the same shape."""
    from torch.nn import functional

    padded = functional.pad(values, (2, 2), mode="replicate")
    near = padded[..., 3:-1] - padded[..., 1:-3]
    far = padded[..., 4:] - padded[..., :-4]
    return (near + 2 * far) / 10
