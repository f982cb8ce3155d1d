"""AASIST: a raw-waveform detector with spectro-temporal graph attention.

Source: Jung et al. 2021, "AASIST: Audio Anti-Spoofing using Integrated Spectro-Temporal Graph
Attention Networks", arXiv:2110.01200, section 3; the encoder is RawNet2's (Tak et al. 2021,
arXiv:2011.01108). Published weights can be imported; the released code omits one activation, and
so does ``as_released``. Here a higher score means forged; in the original it means bona fide
speech.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import AudioDetector

if TYPE_CHECKING:
    from stillroom.forensics.networks.interfaces import DetectorNetwork

__all__ = ["Aasist"]


class Aasist(AudioDetector):
    """Graph attention over frequency and time on the raw waveform."""

    paper: ClassVar[str] = "arXiv:2110.01200"
    limitations: ClassVar[tuple[str, ...]] = (
        "It knows the generators it learned from; its published weights know those of 2019, on "
        "studio recordings.",
    )
    size: Literal["full", "light", "tiny"] = Field(
        default="light", description="AASIST, AASIST-L, or a smaller network for trials"
    )
    as_released: bool = Field(
        default=False, description="omit the activation that the released code omits"
    )

    @override
    def build(self, input_size: int) -> DetectorNetwork:
        from stillroom.forensics.networks.audio import AasistNetwork

        return AasistNetwork(self.size, as_released=self.as_released)

    @override
    def rebuild(self, input_size: int, config: Mapping[str, Any]) -> DetectorNetwork:
        return self.build(input_size)
