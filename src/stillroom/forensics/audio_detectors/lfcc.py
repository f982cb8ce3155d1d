"""LFCC: linear-frequency cepstral coefficients and a small max-feature-map network.

Source: Sahidullah et al. 2015, "A comparison of features for synthetic speech detection",
Interspeech (linear filters, 20 coefficients with deltas); Lavrentyeva et al. 2019,
"STC antispoofing systems for the ASVspoof2019 challenge", arXiv:1904.05576 (the light network of
Wu et al. 2018 on them). Differs: fewer layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import AudioDetector

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Lfcc"]


class Lfcc(AudioDetector):
    """Linear-frequency cepstral coefficients with a light network."""

    paper: ClassVar[str] = "arXiv:1904.05576"
    limitations: ClassVar[tuple[str, ...]] = (
        "It knows the traces of the vocoders it learned from; of another vocoder, or in a room "
        "with an echo, its scores say little.",
    )
    width: int = Field(default=24, ge=4, le=256, description="channels of the first layer")
    filters: int = Field(default=20, ge=8, le=128, description="linear filters, and coefficients")

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.audio import LfccNetwork

        return LfccNetwork(self.width, self.filters)
