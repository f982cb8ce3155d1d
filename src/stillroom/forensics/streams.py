"""Front ends that make a trace visible, and the networks that read what they give.

Each front end is a fixed or nearly fixed function of pictures (B, 3, H, W) in [0, 1]; the paper is
named where it is used. Knows no data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stillroom.forensics.networks import Judged, Network, Normalize, to_grey

__all__ = [
    "FrequencyBands",
    "LinearSpectrum",
    "NeighborResidual",
    "NoiseResidual",
    "PhaseImage",
    "ShortResidual",
    "Stream",
    "azimuthal_mean",
    "cosine_matrix",
]

_RESIDUALS = (
    (
        (0, 0, 0, 0, 0),
        (0, -1, 2, -1, 0),
        (0, 2, -4, 2, 0),
        (0, -1, 2, -1, 0),
        (0, 0, 0, 0, 0),
    ),
    (
        (-1, 2, -2, 2, -1),
        (2, -6, 8, -6, 2),
        (-2, 8, -12, 8, -2),
        (2, -6, 8, -6, 2),
        (-1, 2, -2, 2, -1),
    ),
    (
        (0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0),
        (0, 1, -2, 1, 0),
        (0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0),
    ),
)
_SHARES = (4.0, 12.0, 2.0)
_LEAST = 1e-8


class NoiseResidual(nn.Module):
    """Three high-pass residuals of the luma, cut off, in [-1, 1]; (B, 3, H, W)."""

    kernels: Tensor

    def __init__(self, limit: float) -> None:
        """Cut residuals off at ``limit`` steps of 8 bits."""
        super().__init__()
        kernels = torch.tensor(_RESIDUALS) / torch.tensor(_SHARES)[:, None, None]
        self.register_buffer("kernels", kernels[:, None].float(), persistent=False)
        self.limit = limit

    @override
    def forward(self, images: Tensor) -> Tensor:
        grey = functional.pad(to_grey(images) * 255, (2, 2, 2, 2), mode="reflect")
        found = functional.conv2d(grey, self.kernels)  # (B, 3, H, W)
        return found.clamp(-self.limit, self.limit) / self.limit


class PhaseImage(nn.Module):
    """The luma with all amplitudes 1, scaled to unit deviation; (B, 1, H, W)."""

    @override
    def forward(self, images: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(to_grey(images).float())
        phase = torch.polar(torch.ones_like(spectrum.real), spectrum.angle())
        found: Tensor = torch.fft.ifft2(phase).real
        return found * math.sqrt(images.shape[-1] * images.shape[-2])


class FrequencyBands(nn.Module):
    """Low, middle, high and all of the cosine transform, each as a picture; (B, 12, H, W).

    Each band's filter is fixed plus a learned part within (-1, 1).
    """

    cosine: Tensor
    bands: Tensor

    def __init__(self, pixels: int) -> None:
        """Stand over pictures of ``pixels`` squared."""
        super().__init__()
        self.register_buffer("cosine", cosine_matrix(pixels), persistent=False)
        place = torch.arange(pixels)
        total = place[:, None] + place[None]
        edges = ((0.0, pixels / 2.82), (pixels / 2.82, pixels / 2), (pixels / 2, 2.0 * pixels))
        fixed = [((total >= low) & (total < high)).float() for low, high in edges]
        self.register_buffer("bands", torch.stack([*fixed, torch.ones_like(fixed[0])]), False)
        self.learned = nn.Parameter(torch.randn(4, pixels, pixels) * 0.1)
        self.normalize = Normalize()

    @override
    def forward(self, images: Tensor) -> Tensor:
        found = self.cosine @ self.normalize(images) @ self.cosine.T  # (B, 3, H, W)
        filters = self.bands + torch.tanh(self.learned / 2)  # 2 sigmoid(w) - 1
        split = found[:, None] * filters[None, :, None]  # (B, 4, 3, H, W)
        back = self.cosine.T @ split @ self.cosine
        return torch.flatten(back, 1, 2)  # (B, 12, H, W)


class NeighborResidual(nn.Module):
    """The picture less its halved and doubled self, times 2/3; (B, 3, H, W), sizes made even."""

    @override
    def forward(self, images: Tensor) -> Tensor:
        even = images[..., : images.shape[-2] // 2 * 2, : images.shape[-1] // 2 * 2]
        halved = even[..., ::2, ::2]
        doubled = halved.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return (even - doubled) * (2 / 3) * 2  # pictures in [-1, 1] have twice the differences


class Stream(Network):
    """One network on pixels, on pixels beside a front end's channels, or on the latter alone."""

    def __init__(
        self,
        body: nn.Module,
        *,
        beside: nn.Module | None = None,
        instead: nn.Module | None = None,
    ) -> None:
        """Feed ``body``, which gives a Judged."""
        super().__init__()
        self.normalize = Normalize()
        self.body, self.beside, self.instead = body, beside, instead

    @property
    @override
    def reads_any_size(self) -> bool:
        return self.beside is None and self.instead is None

    @override
    def judge(self, images: Tensor) -> Judged:
        if self.instead is not None:
            given = self.instead(images)
        else:
            given = self.normalize(images)
            if self.beside is not None:
                given = torch.cat([given, self.beside(images)], dim=1)
        judged = self.body(given)
        if not isinstance(judged, Judged):
            raise TypeError(f"{type(self.body).__name__} gave no Judged")
        return judged


class ShortResidual(nn.Module):
    """The first two stages of a ResNet-50, and one output."""

    def __init__(self, width: int) -> None:
        """Begin with ``width`` channels."""
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
            for at in range(count):
                blocks.append(_Bottleneck(wide, inner, 2 if stage and not at else 1))
                wide = inner * 4
            inner *= 2
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(wide, 1)

    @override
    def forward(self, given: Tensor) -> Judged:
        grid = self.blocks(self.stem(given))  # (B, 8 width, h, w)
        features = grid.mean((2, 3))
        return Judged(self.head(features)[:, 0], features, grid)


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, wide: int, inner: int, stride: int) -> None:
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

    @override
    def forward(self, given: Tensor) -> Tensor:
        return functional.relu(self.body(given) + self.shortcut(given))


class LinearSpectrum(Network):
    """Logistic regression on standardized spectra."""

    cosine: Tensor
    band: Tensor
    share: Tensor
    ring: Tensor

    def __init__(self, pixels: int, radii: int, bands: int) -> None:
        """Stand over pictures of ``pixels`` squared."""
        super().__init__()
        radii, bands = min(radii, pixels // 2), min(bands, pixels)
        self.register_buffer("cosine", cosine_matrix(pixels), persistent=False)
        place = torch.arange(pixels) * bands // pixels
        band = place[:, None] * bands + place[None]  # (H, W), which band a frequency is in
        self.register_buffer("band", band.flatten(), persistent=False)
        share = torch.bincount(band.flatten(), minlength=bands**2).float()
        self.register_buffer("share", share, persistent=False)
        self.register_buffer("ring", _rings(pixels, radii), persistent=False)
        self.radii, self.bands = radii, bands
        count = radii + bands**2
        self.scale = nn.BatchNorm1d(count, affine=False)
        self.head = nn.Linear(count, 1)
        nn.init.zeros_(self.head.weight)

    def describe(self, images: Tensor) -> Tensor:
        """Return the spectra of pictures, (B, radii + bands squared)."""
        grey = to_grey(images).float()[:, 0]  # (B, H, W)
        around = azimuthal_mean(grey, self.ring, self.radii)
        found = (self.cosine @ grey @ self.cosine.T).abs().add(_LEAST).log().flatten(1)
        sums = found.new_zeros(len(found), self.bands**2).index_add(1, self.band, found)
        return torch.cat([around, sums / self.share], dim=1)

    @override
    def judge(self, images: Tensor) -> Judged:
        features = self.scale(self.describe(images))
        return Judged(self.head(features)[:, 0], features)


def cosine_matrix(size: int) -> Tensor:
    """Return the orthonormal matrix of the cosine transform (type II), (size, size)."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (place[None] + 0.5) * place[:, None])
    matrix *= math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def azimuthal_mean(grey: Tensor, ring: Tensor, radii: int) -> Tensor:
    """Return the power spectrum in decibels by radius, less that at radius 0, (B, radii).

    Args:
        grey: Pictures, (B, H, W).
        ring: The radius that each frequency counts to, (H W,), ``radii`` for none.
        radii: How many.
    """
    power: Tensor = torch.fft.fft2(grey).abs().square().flatten(1)
    sums = power.new_zeros(len(power), radii + 1).index_add(1, ring, power)[:, :radii]
    counts = torch.bincount(ring, minlength=radii + 1)[:radii]
    decibels: Tensor = 10 * (sums / counts + _LEAST).log10()
    return decibels - decibels[:, :1]


def _rings(pixels: int, radii: int) -> Tensor:
    """Return each frequency's place in ``radii`` steps from 0 to the highest along an axis."""
    along = torch.fft.fftfreq(pixels) * pixels
    radius = (along[:, None] ** 2 + along[None] ** 2).sqrt().round()
    place = torch.div(radius * radii, pixels // 2 + 1, rounding_mode="floor").long()
    return place.clamp(max=radii).flatten()
