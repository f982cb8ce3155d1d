"""Source-filter resynthesis from the pitch and spectral envelope of a recording.

Source: Kawahara et al. 1999, "Restructuring speech representations using a pitch-adaptive
time-frequency smoothing", Speech Communication 27(3-4) (pitch, smooth envelope, pulses and noise).
Differs: the envelope is smoothed in the cepstrum, the pitch is estimated by autocorrelation.
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
    """Resynthesize with pulses and noise through a smoothed envelope."""

    paper: ClassVar[str] = "doi:10.1016/S0167-6393(98)00085-5"
    num_coefficients: int = Field(
        default=32, ge=8, le=120, description="cepstral coefficients of the envelope"
    )
    voicing_threshold: float = Field(
        default=0.4, ge=0, le=1, description="minimum autocorrelation of a voiced frame"
    )

    @override
    def forge(self, waves: Sequence[Waveform], rng: np.random.Generator) -> ForgedAudio:
        import numpy as np

        from stillroom.forensics.media.audio import compute_stft, invert_stft, normalize_peak

        real = waves[0].samples
        magnitude = np.abs(compute_stft(real, _LENGTH, _HOP)) + 1e-6
        cepstrum = np.fft.irfft(np.log(magnitude))
        cepstrum[:, self.num_coefficients : _LENGTH - self.num_coefficients + 1] = 0
        envelope = np.exp(np.fft.rfft(cepstrum).real)
        excited = compute_stft(self._excite(real, rng), _LENGTH, _HOP)
        resynthesis = invert_stft(envelope * excited, _LENGTH, _HOP, len(real))
        mask = np.ones(len(real), dtype=np.float32)
        peak = float(np.abs(real).max())
        return ForgedAudio(
            normalize_peak(resynthesis, peak), mask, real, {"detail": self.num_coefficients}
        )

    def _excite(self, samples: AudioSamples, rng: np.random.Generator) -> AudioSamples:
        """Return pulses at the pitch of voiced frames, noise elsewhere, (N,)."""
        import numpy as np

        from stillroom.forensics.media.audio import SAMPLE_RATE

        pitch = self._find_pitch(samples)
        count = len(samples)
        noise = rng.normal(0, 1, count)
        course = np.interp(np.arange(count), np.arange(len(pitch)) * _HOP, pitch)
        course[course < _LOWEST] = 0
        phase = np.cumsum(course) / SAMPLE_RATE
        strikes = np.flatnonzero(np.diff(np.floor(phase), prepend=0.0) > 0)
        pulses = np.zeros(count)
        pulses[strikes] = np.sqrt(SAMPLE_RATE / np.maximum(course[strikes], _LOWEST))
        is_voiced = course > 0
        return np.asarray(np.where(is_voiced, pulses + 0.1 * noise, noise), dtype=np.float32)

    def _find_pitch(self, samples: AudioSamples) -> npt.NDArray[np.float64]:
        """Return the pitch of every hop in Hz, 0 if unvoiced."""
        import numpy as np

        from stillroom.forensics.media.audio import SAMPLE_RATE

        padded = np.pad(samples.astype(np.float64), _LENGTH // 2)
        starts = np.arange(0, len(samples), _HOP)
        frames = padded[starts[:, None] + np.arange(_LENGTH)[None]]
        frames = frames - frames.mean(axis=1, keepdims=True)
        power = np.abs(np.fft.rfft(frames, 2 * _LENGTH)) ** 2
        same = np.fft.irfft(power)[:, :_LENGTH]
        shortest, longest = int(SAMPLE_RATE / _HIGHEST), int(SAMPLE_RATE / _LOWEST)
        part = same[:, shortest:longest]
        lag = part.argmax(axis=1)
        strength = part[np.arange(len(part)), lag] / np.maximum(same[:, 0], 1e-9)
        return np.where(strength >= self.voicing_threshold, SAMPLE_RATE / (lag + shortest), 0.0)
