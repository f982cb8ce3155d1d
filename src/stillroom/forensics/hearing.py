"""The network on linear cepstral numbers: a front end without weights, and max-feature-maps.

Takes waves (B, N) in [-1, 1] at ``waves.RATE``.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stillroom.forensics.networks import Judged, Network
from stillroom.forensics.waves import RATE

__all__ = ["CepstralNetwork", "LinearCepstrum"]

_LENGTH, _WINDOW, _HOP = 512, 320, 160
_LEAST = 1e-7


class LinearCepstrum(nn.Module):
    """Cepstral numbers on a linear scale, with first and second differences; (B, 3, filters, T)."""

    bank: Tensor
    cosine: Tensor
    window: Tensor

    def __init__(self, filters: int) -> None:
        """Take ``filters`` triangular filters, evenly from 0 to half the rate."""
        super().__init__()
        places = torch.linspace(0, RATE / 2, filters + 2)
        frequency = torch.linspace(0, RATE / 2, _LENGTH // 2 + 1)
        left, middle, right = places[:-2, None], places[1:-1, None], places[2:, None]
        bank = torch.minimum(
            (frequency - left) / (middle - left), (right - frequency) / (right - middle)
        )
        self.register_buffer("bank", bank.clamp(min=0), persistent=False)
        at = torch.arange(filters)
        cosine = torch.cos(math.pi / filters * (at[None] + 0.5) * at[:, None])
        cosine = cosine * math.sqrt(2 / filters)
        cosine[0] /= math.sqrt(2)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("window", torch.hamming_window(_WINDOW), persistent=False)

    @override
    def forward(self, waves: Tensor) -> Tensor:
        raised = waves - 0.97 * functional.pad(waves, (1, 0))[:, :-1]  # pre-emphasis
        frames = raised.unfold(1, _WINDOW, _HOP) * self.window  # (B, T, window)
        power = torch.fft.rfft(frames, _LENGTH).abs().square()
        energy = (power @ self.bank.T + _LEAST).log()  # (B, T, filters)
        plain = (energy @ self.cosine.T).transpose(1, 2)  # (B, filters, T)
        first = _difference(plain)
        return torch.stack([plain, first, _difference(first)], dim=1)


class CepstralNetwork(Network):
    """Four blocks of convolutions whose halves compete, and one output."""

    def __init__(self, width: int, filters: int) -> None:
        """Build it on ``filters`` cepstral numbers."""
        super().__init__()
        self.front = LinearCepstrum(filters)
        self.scale = nn.BatchNorm2d(3)
        sizes = (3, width, 2 * width, 2 * width, width)
        blocks: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(sizes)):
            blocks += [
                nn.Conv2d(before, 2 * after, 5 if number == 0 else 3, padding="same"),
                _Compete(),
                nn.BatchNorm2d(after),
            ]
            blocks += [nn.MaxPool2d(2)] if number < len(sizes) - 2 else []
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(2 * width, 1)

    @override
    def judge(self, images: Tensor) -> Judged:
        grid = self.blocks(self.scale(self.front(images)))  # (B, width, filters / 8, T / 8)
        along = grid.mean(2)
        features = torch.cat([along.mean(2), along.std(2, correction=0)], dim=1)
        return Judged(self.head(self.dropout(features))[:, 0], features)


class _Compete(nn.Module):
    """Max-feature-map: of two halves of the channels the larger value is kept."""

    @override
    def forward(self, given: Tensor) -> Tensor:
        first, second = given.chunk(2, dim=1)
        return torch.maximum(first, second)


def _difference(values: Tensor) -> Tensor:
    """Return the slope over five frames, of the same shape."""
    padded = functional.pad(values, (2, 2), mode="replicate")
    near = padded[..., 3:-1] - padded[..., 1:-3]
    far = padded[..., 4:] - padded[..., :-4]
    return (near + 2 * far) / 10
