"""Convolutional detector networks: noise, phase, frequency, MesoNet, and Face X-ray.

Each front end is a fixed or nearly fixed transform of images (B, 3, H, W) in [0, 1]; the papers are
named by the detectors that use them.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.forensics.interfaces import PretrainedWeights
from stillroom.forensics.networks.interfaces import (
    Backbone,
    DetectorNetwork,
    DetectorOutput,
    Normalize,
    to_grayscale,
)

__all__ = [
    "FaceXrayNetwork",
    "FrequencyBands",
    "MesoNet",
    "NeighborResidual",
    "NoiseResidual",
    "PhaseImage",
    "ShortResNet",
    "SpectrumClassifier",
    "TwoStreamNetwork",
    "compute_azimuthal_mean",
    "compute_boundary",
    "make_dct_matrix",
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
    """Three high-pass residuals of the luma, clipped, in [-1, 1]; (B, 3, H, W)."""

    kernels: Tensor

    def __init__(self, limit: float) -> None:
        """Clip residuals at ``limit`` levels of 8 bits."""
        super().__init__()
        kernels = torch.tensor(_RESIDUALS) / torch.tensor(_SHARES)[:, None, None]
        self.register_buffer("kernels", kernels[:, None].float(), persistent=False)
        self.limit = limit

    @override
    def forward(self, images: Tensor) -> Tensor:
        gray = functional.pad(to_grayscale(images) * 255, (2, 2, 2, 2), mode="reflect")
        residuals = functional.conv2d(gray, self.kernels)  # (B, 3, H, W)
        return residuals.clamp(-self.limit, self.limit) / self.limit


class PhaseImage(nn.Module):
    """The luma with all spectral amplitudes 1, scaled to unit deviation; (B, 1, H, W)."""

    @override
    def forward(self, images: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(to_grayscale(images).float())
        phase = torch.polar(torch.ones_like(spectrum.real), spectrum.angle())
        image: Tensor = torch.fft.ifft2(phase).real
        return image * math.sqrt(images.shape[-1] * images.shape[-2])


class FrequencyBands(nn.Module):
    """Low, middle, high and full band of the DCT, each as an image; (B, 12, H, W).

    Each band's filter is fixed plus a learned part within (-1, 1).
    """

    cosine: Tensor
    bands: Tensor

    def __init__(self, pixels: int) -> None:
        """Build the filters for images of ``pixels`` squared."""
        super().__init__()
        self.register_buffer("cosine", make_dct_matrix(pixels), persistent=False)
        index = torch.arange(pixels)
        total = index[:, None] + index[None]
        edges = ((0.0, pixels / 2.82), (pixels / 2.82, pixels / 2), (pixels / 2, 2.0 * pixels))
        fixed = [((total >= low) & (total < high)).float() for low, high in edges]
        self.register_buffer("bands", torch.stack([*fixed, torch.ones_like(fixed[0])]), False)
        self.learned = nn.Parameter(torch.randn(4, pixels, pixels) * 0.1)
        self.normalize = Normalize()

    @override
    def forward(self, images: Tensor) -> Tensor:
        coefficients = self.cosine @ self.normalize(images) @ self.cosine.T  # (B, 3, H, W)
        filters = self.bands + torch.tanh(self.learned / 2)  # 2 sigmoid(w) - 1
        split = coefficients[:, None] * filters[None, :, None]  # (B, 4, 3, H, W)
        back = self.cosine.T @ split @ self.cosine
        return torch.flatten(back, 1, 2)  # (B, 12, H, W)


class NeighborResidual(nn.Module):
    """Image minus its nearest-neighbor resampling, times 2/3; (B, 3, H, W), sizes made even."""

    @override
    def forward(self, images: Tensor) -> Tensor:
        even = images[..., : images.shape[-2] // 2 * 2, : images.shape[-1] // 2 * 2]
        halved = even[..., ::2, ::2]
        doubled = halved.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return (even - doubled) * (2 / 3) * 2  # inputs in [-1, 1] double the differences


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


class ShortResNet(nn.Module):
    """The first two stages of a ResNet-50, and one logit."""

    def __init__(self, width: int) -> None:
        """Start with ``width`` channels."""
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
                blocks.append(_Bottleneck(wide, inner, 2 if stage and not index else 1))
                wide = inner * 4
            inner *= 2
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(wide, 1)

    @override
    def forward(self, inputs: Tensor) -> DetectorOutput:
        grid = self.blocks(self.stem(inputs))  # (B, 8 width, h, w)
        features = grid.mean((2, 3))
        return DetectorOutput(self.head(features)[:, 0], features, grid)


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut (He et al. 2015, arXiv:1512.03385)."""

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
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.relu(self.body(inputs) + self.shortcut(inputs))


class SpectrumClassifier(DetectorNetwork):
    """Logistic regression on standardized spectral features."""

    cosine: Tensor
    band: Tensor
    share: Tensor
    ring: Tensor

    def __init__(self, pixels: int, radii: int, bands: int) -> None:
        """Build the transforms for images of ``pixels`` squared."""
        super().__init__()
        radii, bands = min(radii, pixels // 2), min(bands, pixels)
        self.register_buffer("cosine", make_dct_matrix(pixels), persistent=False)
        index = torch.arange(pixels) * bands // pixels
        band = index[:, None] * bands + index[None]  # (H, W), band of each frequency
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
        """Return the spectral features of images, (B, radii + bands squared)."""
        gray = to_grayscale(images).float()[:, 0]  # (B, H, W)
        around = compute_azimuthal_mean(gray, self.ring, self.radii)
        coefficients = (self.cosine @ gray @ self.cosine.T).abs().add(_LEAST).log().flatten(1)
        sums = coefficients.new_zeros(len(coefficients), self.bands**2).index_add(
            1, self.band, coefficients
        )
        return torch.cat([around, sums / self.share], dim=1)

    @override
    def forward_features(self, images: Tensor) -> DetectorOutput:
        features = self.scale(self.describe(images))
        return DetectorOutput(self.head(features)[:, 0], features)


def make_dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix, (size, size)."""
    index = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (index[None] + 0.5) * index[:, None])
    matrix *= math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def compute_azimuthal_mean(gray: Tensor, ring: Tensor, radii: int) -> Tensor:
    """Return the power spectrum in decibels by radius, relative to radius 0, (B, radii).

    Args:
        gray: Images, (B, H, W).
        ring: Radius index of each frequency, (H W,), ``radii`` for none.
        radii: Number of radii.
    """
    power: Tensor = torch.fft.fft2(gray).abs().square().flatten(1)
    sums = power.new_zeros(len(power), radii + 1).index_add(1, ring, power)[:, :radii]
    counts = torch.bincount(ring, minlength=radii + 1)[:radii]
    decibels: Tensor = 10 * (sums / counts + _LEAST).log10()
    return decibels - decibels[:, :1]


def _rings(pixels: int, radii: int) -> Tensor:
    """Return each frequency's radius index, in ``radii`` steps from 0 to the highest on an axis."""
    along = torch.fft.fftfreq(pixels) * pixels
    radius = (along[:, None] ** 2 + along[None] ** 2).sqrt().round()
    radius_index = torch.div(radius * radii, pixels // 2 + 1, rounding_mode="floor").long()
    return radius_index.clamp(max=radii).flatten()


_CHANNELS = (3, 8, 8, 16, 16)


_SIZES, _POOLS = (3, 5, 5, 5), (2, 2, 2, 4)


_EPSILON = 1e-3  # of Keras' batch norm


class MesoNet(DetectorNetwork):
    """Four blocks of convolution, ReLU, batch norm and pooling; then 16 hidden units, a logit."""

    def __init__(self, pixels: int) -> None:
        """Build the network for images of ``pixels`` squared, a multiple of 32."""
        super().__init__()
        if pixels % 32:
            raise DataError(
                f"meso4 does not support {pixels} pixels",
                code="forensics.pixels",
                where="image_size",
                expected="a multiple of 32; 256 for its published weights",
                next="set image_size: 256",
            )
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

    @override
    def forward_features(self, images: Tensor) -> DetectorOutput:
        grid = images
        for convolution, norm, pool in zip(self.convolutions, self.norms, _POOLS, strict=True):
            grid = functional.max_pool2d(norm(functional.relu(convolution(grid))), pool)
        flat = grid.permute(0, 2, 3, 1).flatten(1)  # (B, H W C): channels last, as in Keras
        features = functional.leaky_relu(self.hidden(self.dropout(flat)), 0.1)
        return DetectorOutput(self.head(self.dropout(features))[:, 0], features, grid)


_COARSE = 8


class FaceXrayNetwork(DetectorNetwork):
    """A backbone whose last features are upsampled to an eighth of the image, and read as a map."""

    def __init__(self, name: str, weights: PretrainedWeights, map_weight: float) -> None:
        """Build it on a timm network; ``map_weight`` scales the loss of the map."""
        super().__init__()
        self.normalize = Normalize()
        self.trunk = Backbone(name, weights)
        self.raise_up = nn.Sequential(nn.Conv2d(self.trunk.wide, 64, 1), nn.ReLU(inplace=True))
        self.read = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(64, 1, 1)
        )
        self.from_map = nn.Linear(2, 1)
        self.map_weight = map_weight

    @override
    def forward_features(self, images: Tensor) -> DetectorOutput:
        backbone = self.trunk(self.normalize(images))
        size = (images.shape[-2] // _COARSE, images.shape[-1] // _COARSE)
        upsampled = functional.interpolate(self.raise_up(backbone.grid), size=size, mode="bilinear")
        boundary = self.read(upsampled)[:, 0]  # (B, H / 8, W / 8)
        probability = torch.sigmoid(boundary).flatten(1)
        map_logit = self.from_map(torch.stack([probability.mean(1), probability.amax(1)], dim=1))[
            :, 0
        ]
        return DetectorOutput(
            backbone.logits + map_logit, backbone.features, backbone.grid, boundary
        )

    @override
    def loss(
        self, judged: DetectorOutput, labels: Tensor, masks: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        plain, _ = super().loss(judged, labels, masks)
        if judged.map is None:
            raise TypeError("the network's output has no map")
        size = (judged.map.shape[-2], judged.map.shape[-1])
        target = functional.adaptive_avg_pool2d(compute_boundary(masks)[:, None], size)
        gap = (torch.sigmoid(judged.map) - target[:, 0]).square().mean((1, 2)).sum()
        return plain + self.map_weight * gap, {"map_loss": float(gap.detach())}


def compute_boundary(masks: Tensor) -> Tensor:
    """Return the face X-ray of masks in [0, 1], of the same shape: 4 M (1 - M)."""
    return 4 * masks * (1 - masks)
