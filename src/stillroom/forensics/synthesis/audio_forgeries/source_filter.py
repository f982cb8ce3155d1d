"""Source-filter resynthesis from the pitch and spectral envelope of a recording.

Source: Kawahara et al. 1999, "Restructuring speech representations using a pitch-adaptive
time-frequency smoothing", Speech Communication 27(3-4) (pitch, smooth envelope, pulses and noise).
Differs: the envelope is smoothed in the cepstrum, the pitch found by autocorrelation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.forensics.interfaces import AudioForgery, ForgedAudio

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from stillroom.forensics.media.audio import AudioSamples, Waveform

__all__ = ["SourceFilter"]

_LENGTH, _HOP = 1024, 160
_LOWEST, _HIGHEST = 70.0, 350.0


class SourceFilter(AudioForgery):
    """Pulses and noise through a smoothed envelope."""

    paper: ClassVar[str] = "doi:10.1016/S0167-6393(98)00085-5"
    detail: int = Field(default=32, ge=8, le=120, description="cepstral numbers of the envelope")
    voiced: float = Field(
        default=0.4, ge=0, le=1, description="least correlation at which a frame has a pitch"
    )

    @override
    def forge(self, waves: Sequence[Waveform], rng: np.random.Generator) -> ForgedAudio:
        import numpy as np

        from stillroom.forensics.media.audio import compute_stft, invert_stft, normalize_peak

        given = waves[0].values
        heard = np.abs(compute_stft(given, _LENGTH, _HOP)) + 1e-6
        cepstrum = np.fft.irfft(np.log(heard))
        cepstrum[:, self.detail : _LENGTH - self.detail + 1] = 0
        envelope = np.exp(np.fft.rfft(cepstrum).real)
        excited = compute_stft(self._excite(given, rng), _LENGTH, _HOP)
        made = invert_stft(envelope * excited, _LENGTH, _HOP, len(given))
        mask = np.ones(len(given), dtype=np.float32)
        peak = float(np.abs(given).max())
        return ForgedAudio(normalize_peak(made, peak), mask, given, {"detail": self.detail})

    def _excite(self, given: AudioSamples, rng: np.random.Generator) -> AudioSamples:
        """Return pulses at the pitch where there is one, noise elsewhere, (N,)."""
        import numpy as np

        from stillroom.forensics.media.audio import SAMPLE_RATE

        pitch = self._find_pitch(given)
        count = len(given)
        noise = rng.normal(0, 1, count)
        course = np.interp(np.arange(count), np.arange(len(pitch)) * _HOP, pitch)
        course[course < _LOWEST] = 0
        phase = np.cumsum(course) / SAMPLE_RATE
        strikes = np.flatnonzero(np.diff(np.floor(phase), prepend=0.0) > 0)
        pulses = np.zeros(count)
        pulses[strikes] = np.sqrt(SAMPLE_RATE / np.maximum(course[strikes], _LOWEST))
        is_voiced = course > 0
        return np.asarray(np.where(is_voiced, pulses + 0.1 * noise, noise), dtype=np.float32)

    def _find_pitch(self, given: AudioSamples) -> npt.NDArray[np.float64]:
        """Return the pitch every hop in Hz, 0 where none stands out."""
        import numpy as np

        from stillroom.forensics.media.audio import SAMPLE_RATE

        padded = np.pad(given.astype(np.float64), _LENGTH // 2)
        starts = np.arange(0, len(given), _HOP)
        frames = padded[starts[:, None] + np.arange(_LENGTH)[None]]
        frames = frames - frames.mean(axis=1, keepdims=True)
        power = np.abs(np.fft.rfft(frames, 2 * _LENGTH)) ** 2
        same = np.fft.irfft(power)[:, :_LENGTH]
        shortest, longest = int(SAMPLE_RATE / _HIGHEST), int(SAMPLE_RATE / _LOWEST)
        part = same[:, shortest:longest]
        at = part.argmax(axis=1)
        strength = part[np.arange(len(part)), at] / np.maximum(same[:, 0], 1e-9)
        return np.where(strength >= self.voiced, SAMPLE_RATE / (at + shortest), 0.0)
