"""AASIST: a raw-waveform detector with spectro-temporal graph attention.

Source: Jung et al. 2021, "AASIST: Audio Anti-Spoofing using Integrated Spectro-Temporal Graph
Attention Networks", arXiv:2110.01200, section 3; the encoder is RawNet2's (Tak et al. 2021,
arXiv:2011.01108). Published weights can be imported; the released code leaves out one activation,
which ``as_released`` does too. Here a higher score is forged: theirs is of bona fide speech.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import Detector

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Aasist"]


class Aasist(Detector):
    """Graph attention over frequency and time on the raw wave."""

    paper: ClassVar[str] = "arXiv:2110.01200"
    hears: ClassVar[bool] = True
    blind: ClassVar[tuple[str, ...]] = (
        "It knows the generators it learned from; its published weights know those of 2019, on "
        "studio recordings.",
    )
    size: Literal["full", "light", "tiny"] = Field(
        default="light", description="AASIST, AASIST-L, or a smaller one for trials"
    )
    as_released: bool = Field(
        default=False, description="leave out the activation that the released code leaves out"
    )

    @override
    def build(self, pixels: int) -> DetectorNetwork:
        from stillroom.forensics.networks.audio import AasistNetwork

        return AasistNetwork(self.size, as_released=self.as_released)

    @override
    def rebuild(self, pixels: int, kept: Mapping[str, Any]) -> DetectorNetwork:
        return self.build(pixels)
