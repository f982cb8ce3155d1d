"""Audio splicing: a segment of another recording inserted with cross-fades.

Source: Zhang et al. 2021, "An Initial Investigation for Detecting Partially Spoofed Audio",
arXiv:2104.02518 (segments inserted by overlap-add, at the same loudness).
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

__all__ = ["SoundSplice"]


class SoundSplice(AudioForgery):
    """Insert a segment of another recording."""

    paper: ClassVar[str] = "arXiv:2104.02518"
    num_waveforms: ClassVar[int] = 2
    min_seconds: float = Field(default=0.3, gt=0, le=60, description="minimum duration, in seconds")
    max_seconds: float = Field(default=1.2, gt=0, le=60, description="maximum duration, in seconds")
    fade_seconds: float = Field(default=0.01, ge=0, le=1, description="cross-fade, in seconds")

    @override
    def forge(self, waves: Sequence[Waveform], rng: np.random.Generator) -> ForgedAudio:
        import numpy as np

        from stillroom.forensics.media.audio import SAMPLE_RATE, fit_length

        target, source = waves[0].samples, waves[1].samples
        longest = min(self.max_seconds * SAMPLE_RATE, 0.8 * len(target))
        count = max(int(rng.uniform(min(self.min_seconds * SAMPLE_RATE, longest), longest)), 16)
        start = int(rng.integers(len(target) - count + 1))
        piece = fit_length(source, count, int(rng.integers(max(len(source) - count, 0) + 1)))
        original = target[start : start + count]
        strength = float(np.sqrt(np.mean(original**2) + 1e-9) / np.sqrt(np.mean(piece**2) + 1e-9))
        fade = min(round(self.fade_seconds * SAMPLE_RATE), count // 2)
        ramp = np.ones(count, dtype=np.float32)
        if fade:
            ramp[:fade] = (np.arange(fade) + 0.5) / fade
            ramp[-fade:] = ramp[:fade][::-1]
        forged = target.copy()
        forged[start : start + count] = (1 - ramp) * original + ramp * piece * min(strength, 4.0)
        mask = np.zeros(len(target), dtype=np.float32)
        mask[start : start + count] = ramp
        details = {"source": waves[1].name, "start_s": round(start / SAMPLE_RATE, 3)}
        return ForgedAudio(np.clip(forged, -1, 1).astype(np.float32), mask, target, details)
