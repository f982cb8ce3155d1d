"""A linear classifier on azimuthal power spectra and DCT band energies.

Source: Durall et al. 2019, "Unmasking DeepFakes with simple Features", arXiv:1911.00686 (azimuthal
mean of the power spectrum); Frank et al. 2020, "Leveraging Frequency Analysis for Deep Fake Image
Recognition", arXiv:2003.08685 (log of the DCT, standardized). Differs: logistic regression on both;
the DCT is averaged over bands, so that hundreds of images suffice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import ImageDetector

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Spectral", "compute_azimuthal_mean"]

_LEAST = 1e-8


class Spectral(ImageDetector):
    """A linear classifier on spectra of the whole image."""

    paper: ClassVar[str] = "arXiv:1911.00686"
    preserve_pixels: ClassVar[bool] = True
    limitations: ClassVar[tuple[str, ...]] = (
        "It sees the spectrum of the whole picture: a face swapped into it hardly moves that.",
        "Resizing and compression change the spectrum as generators do.",
    )
    radii: int = Field(default=48, ge=8, le=512, description="radii of the power spectrum")
    bands: int = Field(default=12, ge=2, le=64, description="DCT bands per side")

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        import torch
        from torch import nn

        from stillroom.forensics.networks.interfaces import (
            DetectorNetwork,
            DetectorOutput,
            make_dct_matrix,
            to_grayscale,
        )

        class SpectrumClassifier(DetectorNetwork):
            cosine: Tensor
            band: Tensor
            share: Tensor
            ring: Tensor

            def __init__(self, pixels: int, radii: int, bands: int) -> None:
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
                coefficients = (
                    (self.cosine @ gray @ self.cosine.T).abs().add(_LEAST).log().flatten(1)
                )
                sums = coefficients.new_zeros(len(coefficients), self.bands**2).index_add(
                    1, self.band, coefficients
                )
                return torch.cat([around, sums / self.share], dim=1)

            def forward_features(self, images: Tensor) -> DetectorOutput:
                features = self.scale(self.describe(images))
                return DetectorOutput(self.head(features)[:, 0], features)

        return SpectrumClassifier(input_size, self.radii, self.bands)


def compute_azimuthal_mean(gray: Tensor, ring: Tensor, radii: int) -> Tensor:
    """Return the power spectrum in decibels by radius, relative to radius 0, (B, radii).

    Args:
        gray: Images, (B, H, W).
        ring: Radius index of each frequency, (H W,), ``radii`` for none.
        radii: Number of radii.
    """
    import torch

    power: Tensor = torch.fft.fft2(gray).abs().square().flatten(1)
    sums = power.new_zeros(len(power), radii + 1).index_add(1, ring, power)[:, :radii]
    counts = torch.bincount(ring, minlength=radii + 1)[:radii]
    decibels: Tensor = 10 * (sums / counts + _LEAST).log10()
    return decibels - decibels[:, :1]


def _rings(pixels: int, radii: int) -> Tensor:
    """Return each frequency's radius index, in ``radii`` steps from 0 to the highest on an axis."""
    import torch

    along = torch.fft.fftfreq(pixels) * pixels
    radius = (along[:, None] ** 2 + along[None] ** 2).sqrt().round()
    radius_index = torch.div(radius * radii, pixels // 2 + 1, rounding_mode="floor").long()
    return radius_index.clamp(max=radii).flatten()
