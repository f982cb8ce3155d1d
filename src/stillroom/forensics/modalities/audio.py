"""Audio of a detector: augmentation (noise, codec), perturbations and features.

All randomness comes from the generator passed in. Both recordings of a pair share each draw, so
that they differ in the forgery only.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.forensics.extras import require_packages
from stillroom.forensics.interfaces import ForgedAudio
from stillroom.forensics.media.audio import (
    SAMPLE_RATE,
    AudioSamples,
    compute_stft,
    fit_length,
    make_mel_filterbank,
    resample,
)
from stillroom.forensics.modalities.interfaces import Floats, Modality

__all__ = [
    "AudioModality",
    "add_noise",
    "apply_audio_codec",
    "augment_audio_pair",
    "match_loudness",
    "measure_bandwidth",
]

_CODECS = {"mp3": ("libmp3lame", "mp3", 44_100), "aac": ("aac", "adts", 44_100)}


def apply_audio_codec(values: AudioSamples, codec: str, bits_a_second: int) -> AudioSamples:
    """Encode and decode audio with MP3 or AAC in memory; the length is preserved.

    Args:
        values: Mono, (N,), at ``SAMPLE_RATE``.
        codec: ``mp3`` or ``aac``.
        bits_a_second: Bit rate, such as 64000.

    Raises:
        DataError: If this build of PyAV lacks the encoder.
    """
    require_packages("av")
    import av
    from av.audio.stream import AudioStream

    name, container_name, rate = _CODECS[codec]
    out = io.BytesIO()
    try:
        with av.open(out, "w", format=container_name) as container:
            stream = container.add_stream(name, rate=rate)
            if not isinstance(stream, AudioStream):
                raise ValueError(f"{name} is not an audio codec")
            stream.bit_rate, stream.layout = bits_a_second, "mono"
            raised = np.ascontiguousarray(resample(values, SAMPLE_RATE, rate)[None], np.float32)
            frame = av.AudioFrame.from_ndarray(raised, format="fltp", layout="mono")
            frame.sample_rate = rate
            fitter = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate)
            for part in [*fitter.resample(frame), *fitter.resample(None)]:
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        raise DataError(
            f"audio cannot be encoded with {name}: {error}",
            code="forensics.sound-coding",
            expected=f"a build of PyAV with {name}",
            next="pip install --force-reinstall av",
        ) from error
    return _decode(out, len(values))


def match_loudness(forged: ForgedAudio) -> ForgedAudio:
    """Remove the offset of a forgery and its twin, and match their loudness.

    Without it, the loudness or a recorder's offset alone would separate a resynthesis from its
    twin.
    """
    twin = forged.twin - np.float32(forged.twin.mean())
    values = forged.samples - np.float32(forged.samples.mean())
    loud, quiet = (float(np.sqrt(np.mean(np.square(waveform)))) for waveform in (twin, values))
    if quiet > 0 and loud > 0:
        values = values * np.float32(loud / quiet)
    most = max(float(np.abs(waveform).max(initial=0.0)) for waveform in (twin, values))
    share = np.float32(1 / max(most, 1.0))  # both alike, so that neither is clipped
    return replace(forged, samples=values * share, twin=twin * share)


def add_noise(values: AudioSamples, decibels: float, rng: np.random.Generator) -> AudioSamples:
    """Add white noise ``decibels`` dB below the signal."""
    power = float(np.mean(values.astype(np.float64) ** 2)) / 10 ** (decibels / 10)
    noisy = values + rng.normal(0, np.sqrt(power), len(values))
    return np.asarray(np.clip(noisy, -1, 1), dtype=np.float32)


def augment_audio_pair(
    fake: AudioSamples, real: AudioSamples, coded: float, rng: np.random.Generator
) -> tuple[AudioSamples, AudioSamples]:
    """Augment both waveforms alike: gain, noise, and a codec for a share ``coded``."""
    gain = float(10 ** (rng.uniform(-12, 0) / 20))
    decibels, seed = float(rng.uniform(18, 45)), int(rng.integers(2**63))
    is_coded = bool(rng.random() < coded)
    codec = ("mp3", "aac")[int(rng.integers(2))]
    bits = int(rng.choice([32_000, 48_000, 64_000, 96_000]))

    def treat(values: AudioSamples) -> AudioSamples:
        out = add_noise(gain * values, decibels, np.random.default_rng(seed))
        return apply_audio_codec(out, codec, bits) if is_coded else out

    return treat(fake), treat(real)


def _limit_bandwidth(values: AudioSamples) -> AudioSamples:
    return resample(resample(values, SAMPLE_RATE, 8000), 8000, SAMPLE_RATE)[: len(values)]


_CONDITIONS: Mapping[str, Callable[[AudioSamples], AudioSamples]] = {
    "clean": lambda values: values,
    "mp3_64": lambda values: apply_audio_codec(values, "mp3", 64_000),
    "aac_64": lambda values: apply_audio_codec(values, "aac", 64_000),
    "noise20": lambda values: add_noise(values, 20.0, np.random.default_rng(len(values))),
    "telephone": _limit_bandwidth,
}


def _decode(data: io.BytesIO, count: int) -> AudioSamples:
    import av
    from av.container import InputContainer

    data.seek(0)
    parts: list[AudioSamples] = []
    with av.open(data, "r") as coded:
        if not isinstance(coded, InputContainer):
            raise TypeError("PyAV did not open the file for reading")
        fitter = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        for frame in coded.decode(audio=0):
            parts += [np.asarray(p.to_ndarray(), np.float32)[0] for p in fitter.resample(frame)]
        parts += [np.asarray(p.to_ndarray(), np.float32)[0] for p in fitter.resample(None)]
    waveform = np.concatenate(parts)[:count]
    return np.asarray(np.pad(waveform, (0, count - len(waveform))), dtype=np.float32)


_BANDS, _LENGTH, _HOP = 12, 512, 256
_LEAST = 1e-6
_ENERGY = 0.999

_FEATURES = (
    *(f"energy of band {at + 1} of {_BANDS}" for at in range(_BANDS)),
    *(f"changes of band {at + 1} of {_BANDS}" for at in range(_BANDS)),
    "loudness",
)


def measure_bandwidth(values: AudioSamples) -> float:
    """Return the frequency in Hz below which 99.9 % of the energy lies."""
    power = np.square(np.abs(np.fft.rfft(values.astype(np.float64))))
    total = float(power.sum())
    if total <= 0:
        return 0.0
    index = int(np.argmax(np.cumsum(power) >= _ENERGY * total))
    return index * SAMPLE_RATE / len(values)


@dataclass(frozen=True)
class AudioModality(Modality):
    """Input of an audio detector: a waveform (N,) of ``num_samples`` at ``sample_rate``."""

    num_samples: Annotated[int, Field(ge=1, le=2**27)]
    sample_rate: Annotated[int, Field(ge=1, le=2**20)] = SAMPLE_RATE

    name: ClassVar[Literal["image", "audio"]] = "audio"
    subject: ClassVar[str] = "voices"
    detail_unit: ClassVar[str] = "Hz"
    batch_size: ClassVar[int] = 4  # a waveform of four seconds takes a quarter of a GB in aasist
    features: ClassVar[tuple[str, ...]] = _FEATURES
    conditions: ClassVar[Mapping[str, Callable[[Any], Any]]] = _CONDITIONS

    @property
    @override
    def input_size(self) -> int:
        return self.num_samples

    @property
    def seconds(self) -> float:
        """Duration of one input."""
        return self.num_samples / self.sample_rate

    @override
    def prepare(self, samples: Sequence[AudioSamples]) -> npt.NDArray[np.float32]:
        waveforms = [np.asarray(sample, dtype=np.float32) for sample in samples]
        return np.stack([fit_length(waveform, self.num_samples) for waveform in waveforms])

    @override
    def measure(self, sample: AudioSamples) -> Floats:
        values = fit_length(np.asarray(sample, np.float32), self.num_samples)
        power = np.abs(compute_stft(values, _LENGTH, _HOP)) ** 2  # (T, bins)
        energy = np.log10(power @ make_mel_filterbank(_BANDS, _LENGTH).T + _LEAST)  # (T, bands)
        level = np.log10(float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) + _LEAST)
        return np.array([*energy.mean(axis=0), *energy.std(axis=0), level], dtype=np.float64)
