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
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Spectral"]


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
        from stillroom.forensics.networks.cnn_streams import SpectrumClassifier

        return SpectrumClassifier(input_size, self.radii, self.bands)
