"""Vocoder: a recording reduced to mel bands and made anew, its phase guessed.

Source: Wang and Yamagishi 2023, "Spoofed training data for speech spoofing countermeasure can be
efficiently created using neural vocoders", arXiv:2210.10570 (copy synthesis as the spoofed class);
Griffin and Lim 1984, IEEE TASSP 32(2) (the phase). Differs: no neural network guesses the phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.method import ForgedSound, Resynthesis

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.waves import Wave

__all__ = ["Vocoder"]


class Vocoder(Resynthesis):
    """Mel bands and back."""

    paper: ClassVar[str] = "arXiv:2210.10570"
    bands: int = Field(default=64, ge=16, le=256, description="mel bands that are kept")
    rounds: int = Field(default=12, ge=0, le=200, description="rounds of guessing the phase")

    @override
    def forge(self, waves: Sequence[Wave], rng: np.random.Generator) -> ForgedSound:
        import numpy as np

        from stillroom.forensics.waves import from_spectrum, level, mel_bands, to_spectrum

        length, hop = 1024, 256
        given = waves[0].values
        filters = mel_bands(self.bands, length)
        heard = np.abs(to_spectrum(given, length, hop)) @ filters.T
        weight = np.maximum(filters.sum(axis=0), 1e-6)
        size = heard / np.maximum(filters.sum(axis=1), 1e-6) @ filters / weight
        phase = np.exp(2j * np.pi * rng.random(size.shape))
        made = from_spectrum(size * phase, length, hop, len(given))
        for _ in range(self.rounds):
            again = to_spectrum(made, length, hop)
            phase = again / np.maximum(np.abs(again), 1e-9)
            made = from_spectrum(size * phase, length, hop, len(given))
        mask = np.ones(len(given), dtype=np.float32)
        peak = float(np.abs(given).max())
        return ForgedSound(level(made, peak), mask, given, {"bands": self.bands})
