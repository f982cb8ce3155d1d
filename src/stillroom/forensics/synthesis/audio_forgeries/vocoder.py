"""Mel vocoder: a recording reduced to mel bands and resynthesized with estimated phase.

Source: Wang and Yamagishi 2023, "Spoofed training data for speech spoofing countermeasure can be
efficiently created using neural vocoders", arXiv:2210.10570 (copy synthesis as the spoofed class);
Griffin and Lim 1984, IEEE TASSP 32(2) (the phase). Differs: no neural network estimates the phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import AudioForgery, ForgedAudio

if TYPE_CHECKING:
    import numpy as np

    from stillroom.forensics.media.audio import Waveform

__all__ = ["Vocoder"]


class Vocoder(AudioForgery):
    """Resynthesize from a mel spectrogram."""

    paper: ClassVar[str] = "arXiv:2210.10570"
    bands: int = Field(default=64, ge=16, le=256, description="mel bands")
    iterations: int = Field(default=12, ge=0, le=200, description="Griffin-Lim iterations")

    @override
    def forge(self, waves: Sequence[Waveform], rng: np.random.Generator) -> ForgedAudio:
        import numpy as np

        from stillroom.forensics.media.audio import (
            compute_stft,
            invert_stft,
            make_mel_filterbank,
            normalize_peak,
        )

        length, hop = 1024, 256
        real = waves[0].samples
        filters = make_mel_filterbank(self.bands, length)
        mel = np.abs(compute_stft(real, length, hop)) @ filters.T
        weight = np.maximum(filters.sum(axis=0), 1e-6)
        size = mel / np.maximum(filters.sum(axis=1), 1e-6) @ filters / weight
        phase = np.exp(2j * np.pi * rng.random(size.shape))
        resynthesis = invert_stft(size * phase, length, hop, len(real))
        for _ in range(self.iterations):
            again = compute_stft(resynthesis, length, hop)
            phase = again / np.maximum(np.abs(again), 1e-9)
            resynthesis = invert_stft(size * phase, length, hop, len(real))
        mask = np.ones(len(real), dtype=np.float32)
        peak = float(np.abs(real).max())
        return ForgedAudio(normalize_peak(resynthesis, peak), mask, real, {"bands": self.bands})
