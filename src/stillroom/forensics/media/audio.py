"""Audio decoding, short-time spectra (STFT, mel), resampling, and eSpeak NG speech synthesis.

Audio is mono, float32 in [-1, 1], at ``SAMPLE_RATE`` samples per second wherever this room makes or
judges it.

Files are decoded block by block, so that memory does not grow with duration. Statistics: level,
clipping, silence, and the frequency below which nearly all energy lies, which separates telephone
from studio bandwidth.
"""

from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stillroom.errors import DataError, MissingExtraError
from stillroom.forensics.extras import require_packages
from stillroom.forensics.media.video import describe_error, make_clip_error, require_decoder

__all__ = [
    "AUDIO_SUFFIXES",
    "SAMPLE_RATE",
    "AudioSamples",
    "DecodedAudio",
    "EspeakProgram",
    "Waveform",
    "compute_stft",
    "fit_length",
    "invert_stft",
    "load_waveform",
    "make_mel_filterbank",
    "name_codec",
    "normalize_peak",
    "read_audio",
    "read_blocks",
    "read_codec",
    "resample",
    "synthesize_speech",
]

SAMPLE_RATE = 16_000
MAX_SECONDS = 600.0
_MAX_GAP = 0.1  # seconds
_MAX_PAUSE = 1.0  # seconds; in discontinuous transmission, Opus sends a packet every .4 s
_QUIET = 0.02  # highest amplitude of what is not sent
_SPEECH_CODEC = re.compile("opus|amr|speex|evrc|g729|silk")
_MIN_RATE = 1_000  # one sample a second would become SAMPLE_RATE of them
_LOSSLESS = frozenset({"flac", "alac", "ape", "tta", "tak", "wavpack", "wmalossless"})

AUDIO_SUFFIXES = frozenset(
    [
        *(".wav", ".mp3", ".flac", ".m4a", ".ogg", ".oga", ".opus", ".aac"),
        *(".aif", ".aiff", ".amr", ".wma"),
    ]
)
"""Suffixes of files that are read as recordings."""

AudioSamples = npt.NDArray[np.float32]
Spectrum = npt.NDArray[np.complex128]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Waveform:
    """A recording at ``SAMPLE_RATE``: samples (N,), name, speaker identity, digest of its file.

    ``codings`` are the codings of the files it is cut from, by ``name_codec``; empty if drawn.
    """

    samples: AudioSamples
    name: str
    identity: str
    digest: str
    codings: tuple[str, ...] = ()


def name_codec(codec: str) -> str:
    """Return the coding of a decoder: ``lossless``, or the name of the lossy codec."""
    lossless = codec.startswith("pcm_") or codec in _LOSSLESS
    return "lossless" if lossless else codec.removesuffix("float")


def read_codec(path: Path) -> str:
    """Return the decoder name of the first audio track; empty if it cannot be opened."""
    import av

    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            streams = container.streams.audio
            return str(streams[0].codec_context.name) if streams else ""
    except (av.FFmpegError, ValueError):
        return ""


def compute_stft(values: AudioSamples, length: int, hop: int) -> Spectrum:
    """Return the short-time spectrum, (frames, length // 2 + 1), frames centered on each hop."""
    padded = np.pad(values.astype(np.float64), length // 2, mode="reflect")
    count = 1 + (len(padded) - length) // hop
    indices = np.arange(length)[None] + hop * np.arange(count)[:, None]
    return np.asarray(np.fft.rfft(padded[indices] * _window(length)), dtype=np.complex128)


def invert_stft(spectrum: Spectrum, length: int, hop: int, count: int) -> AudioSamples:
    """Return the waveform of ``count`` values whose short-time spectrum is nearest.

    Source: Griffin and Lim 1984, "Signal estimation from modified short-time Fourier transform",
    IEEE TASSP 32(2), equation 6.
    """
    window = _window(length)
    frames = np.fft.irfft(spectrum, length) * window
    size = length + hop * (len(frames) - 1)
    total, weight = np.zeros(size), np.zeros(size)
    for number, frame in enumerate(frames):
        total[number * hop : number * hop + length] += frame
        weight[number * hop : number * hop + length] += window**2
    waveform = total / np.maximum(weight, 1e-8)
    trimmed = waveform[length // 2 : length // 2 + count]
    return np.asarray(np.pad(trimmed, (0, max(count - len(trimmed), 0))), dtype=np.float32)


def make_mel_filterbank(bands: int, length: int) -> Floats:
    """Return triangular mel filters over a spectrum, (bands, length // 2 + 1).

    Source: O'Shaughnessy 1987, 2595 log10(1 + f / 700).
    """
    edges = np.linspace(0, float(2595 * np.log10(1 + (SAMPLE_RATE / 2) / 700)), bands + 2)
    edges_hz = 700 * (10 ** (edges / 2595) - 1)
    frequency = np.linspace(0, SAMPLE_RATE / 2, length // 2 + 1)
    left, middle, right = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising = (frequency - left) / (middle - left)
    falling = (right - frequency) / (right - middle)
    return np.asarray(np.maximum(np.minimum(rising, falling), 0.0))


def resample(values: AudioSamples, before: float, after: float) -> AudioSamples:
    """Resample a waveform by its spectrum (band-limited), as one block."""
    count = round(len(values) * after / before)
    if count == len(values) or not len(values):
        return values
    spectrum = np.fft.rfft(values.astype(np.float64))
    num_bins = count // 2 + 1
    fitted = np.zeros(num_bins, dtype=np.complex128)
    num_copied = min(num_bins, len(spectrum))
    fitted[:num_copied] = spectrum[:num_copied]
    return np.asarray(np.fft.irfft(fitted, count) * (count / len(values)), dtype=np.float32)


def fit_length(values: AudioSamples, count: int, start: int = 0) -> AudioSamples:
    """Return ``count`` values from ``start``; a shorter waveform is tiled."""
    if len(values) - start >= count:
        return np.ascontiguousarray(values[start : start + count])
    times = -(-count // max(len(values), 1))
    return np.ascontiguousarray(np.tile(values, times)[:count])


def normalize_peak(values: AudioSamples, peak: float = 0.7) -> AudioSamples:
    """Scale a waveform to a peak amplitude; silence stays silent."""
    most = float(np.abs(values).max(initial=0.0))
    return np.asarray(values * (peak / most) if most > 0 else values, dtype=np.float32)


def load_waveform(path: Path) -> AudioSamples:
    """Decode the first audio track of a file to mono at ``SAMPLE_RATE``.

    Raises:
        DataError: If there is none, it is longer than ``MAX_SECONDS``, or a part of it cannot be
            decoded.
    """
    parts: list[AudioSamples] = []
    count = 0
    for part in read_blocks(path, whole=True):
        parts.append(part)
        count += len(part)
        if count > MAX_SECONDS * SAMPLE_RATE:
            raise make_clip_error(
                path, f"is longer than {MAX_SECONDS:.0f} s", "a shorter recording"
            )
    return np.concatenate(parts)


def read_blocks(path: Path, *, whole: bool = False) -> Iterator[AudioSamples]:
    """Yield the first audio track of a file in blocks of some hundredths of a second.

    Args:
        path: The file.
        whole: Refuse a file that is damaged at some place, instead of yielding the rest of it.

    Raises:
        DataError: If there is none, or nothing can be decoded.
    """
    num_samples, end, last = 0, math.inf, np.zeros(0, np.float32)
    with _open_track(path) as (container, stream):
        import av

        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        try:
            for frame in container.decode(stream):
                if whole and frame.pts is not None:
                    start = float(frame.pts * frame.time_base)
                    if start > end + _MAX_GAP:  # decoders pass over what they cannot read
                        yield _fill_pause(path, stream.codec_context.name, end, start, last)
                    end = start + frame.samples / frame.sample_rate
                for part in resampler.resample(frame):
                    num_samples += part.samples
                    last = np.asarray(part.to_ndarray(), np.float32).reshape(-1)
                    yield last
            for part in resampler.resample(None):
                yield np.asarray(part.to_ndarray(), np.float32).reshape(-1)
        except av.FFmpegError:
            if whole or not num_samples:
                raise
    if not num_samples:
        raise make_clip_error(path, "has no audio that can be decoded", "a complete file")


def _fill_pause(
    path: Path, codec: str, start: float, end: float, before: AudioSamples
) -> AudioSamples:
    """Return silence for a gap in which a codec of speech sent nothing, as it was quiet.

    Raises:
        DataError: If the gap is none of these, but damage.
    """
    is_quiet = float(np.abs(before).max(initial=0.0)) < _QUIET
    if not (is_quiet and end - start < _MAX_PAUSE and _SPEECH_CODEC.search(codec)):
        raise make_clip_error(path, f"is damaged after {start:.1f} s", "a complete file")
    return np.zeros(round((end - start) * SAMPLE_RATE), np.float32)


@contextmanager
def _open_track(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the first audio track of a file; its errors become ours."""
    require_packages("av")
    import av

    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise make_clip_error(path, "has no audio", "a file with an audio track")
            require_decoder(path, container.streams.audio[0], "sound")
            stream = container.streams.audio[0]
            if 0 < int(stream.codec_context.sample_rate or 0) < _MIN_RATE:
                rate = f"has {stream.codec_context.sample_rate} samples a second"
                raise make_clip_error(path, rate, f"at least {_MIN_RATE}")
            yield container, stream
    except DataError:
        raise
    except (av.FFmpegError, ValueError) as error:
        reason = describe_error(error)
        raise make_clip_error(
            path, f"is damaged or not a recording: {reason}", "a complete file"
        ) from error


def _window(length: int) -> Floats:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


_SHORT_SECONDS = 1.0
_NARROW_BAND = 4000.0
_BLOCK = 2048
_SILENT = 10 ** (-50 / 20)
_MAX_BLOCKS = 4000
_ENERGY = 0.999


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """Statistics of a recording: seconds, sample rate, channels, shares of clipping and silence.

    ``band`` is the frequency in Hz below which 99.9 % of the energy of loud blocks lies.
    """

    duration: float
    rate: int
    channels: int
    codec: str
    peak: float
    clipped: float
    silent: float
    band: float
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """Format as one line."""
        band = f", energy below {self.band:.0f} Hz" if self.band else ""  # 0 of silence
        return (
            f"{self.duration:.1f} s, {self.rate} Hz, {self.channels} channel"
            f"{'' if self.channels == 1 else 's'}, {self.codec}{band}"
        )

    def limits(self) -> tuple[str, ...]:
        """Return properties that limit a judgment."""
        limits = list(self.notes)
        if self.duration < _SHORT_SECONDS:
            limits.append(f"only {self.duration:.2f} s of sound")
        if self.silent > 0.9:
            limits.append(f"{self.silent:.0%} of the sound is silence")
        elif 0 < self.band < _NARROW_BAND:
            limits.append(f"narrow band: the sound has no energy above {self.band:.0f} Hz")
        if self.clipped > 0.001:
            limits.append(f"{self.clipped:.1%} of the sound is clipped")
        return tuple(limits)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "notes"}


def read_audio(path: Path) -> DecodedAudio:
    """Read statistics of a recording or of the first audio track of a clip.

    Raises:
        DataError: If there is none, or it cannot be decoded at all.
    """
    notes: list[str] = []
    tally = _AudioStatistics()
    with _open_track(path) as (container, stream):
        import av

        codec = stream.codec_context.name
        try:
            for block in _blocks(container, stream):
                tally.add(block)
        except av.FFmpegError as error:
            notes.append(f"damaged after {tally.seconds:.1f} s: {describe_error(error)}")
    if not tally.count:
        raise make_clip_error(path, "has no audio that can be decoded", "a complete file")
    return tally.result(codec, tuple(notes))


class _AudioStatistics:
    """Running statistics of a recording."""

    def __init__(self) -> None:
        self.rate, self.channels, self.count = 0, 0, 0
        self.peak, self.clipped, self.silent = 0.0, 0, 0
        self.power = np.zeros(_BLOCK // 2 + 1)
        self.heard = 0

    @property
    def seconds(self) -> float:
        return self.count / self.rate if self.rate else 0.0

    def add(self, block: tuple[npt.NDArray[np.float32], int]) -> None:
        values, self.rate = block  # (channels, samples)
        self.channels = values.shape[0]
        size = np.abs(values).max(axis=0)
        self.count += len(size)
        self.peak = max(self.peak, float(size.max(initial=0)))
        self.clipped += int((size >= 0.999).sum())
        self.silent += int((size < _SILENT).sum())
        mono = values.mean(axis=0)
        for begin in range(0, len(mono) - _BLOCK + 1, _BLOCK):
            part = mono[begin : begin + _BLOCK]
            if self.heard < _MAX_BLOCKS and float(np.abs(part).max()) >= _SILENT:
                self.power += np.abs(np.fft.rfft(part * np.hanning(_BLOCK))) ** 2
                self.heard += 1

    def result(self, codec: str, notes: tuple[str, ...]) -> DecodedAudio:
        band = 0.0
        if self.power.sum() > 0:
            share = np.cumsum(self.power) / self.power.sum()
            band = float(np.argmax(share >= _ENERGY)) * self.rate / _BLOCK
        return DecodedAudio(
            round(self.seconds, 3),
            self.rate,
            self.channels,
            codec,
            round(self.peak, 4),
            self.clipped / self.count,
            self.silent / self.count,
            round(band, 1),
            notes,
        )


def _blocks(container: Any, stream: Any) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """Yield blocks of about one second, (channels, samples) in [-1, 1], and their sample rate."""
    import av

    resampler = av.AudioResampler(format="fltp")
    waiting: list[npt.NDArray[np.float32]] = []
    rate = int(stream.codec_context.sample_rate or 1)
    for frame in container.decode(stream):
        rate = frame.sample_rate
        waiting += [np.asarray(part.to_ndarray(), np.float32) for part in resampler.resample(frame)]
        if sum(part.shape[1] for part in waiting) >= max(rate, _BLOCK):
            yield np.concatenate(waiting, axis=1), rate
            waiting = []
    if waiting:
        yield np.concatenate(waiting, axis=1), rate


EspeakProgram = Literal["espeak-ng", "espeak"]
_TIMEOUT_S = 60.0
_HEADER = 44  # bytes; it states no length where the program writes to a pipe


def synthesize_speech(
    text: str, program: EspeakProgram, *, voice: str, pitch: int, pace: int
) -> AudioSamples:
    """Synthesize speech with eSpeak NG, mono at ``SAMPLE_RATE``.

    Args:
        text: Plain words, passed on standard input, never on a command line.
        program: One of the two names of the program; nothing else is run.
        voice: An eSpeak NG voice.
        pitch: 0 to 99.
        pace: Words per minute.

    Raises:
        MissingExtraError: If the program is not installed.
        DataError: If it failed or produced no audio.
    """
    executable = shutil.which(program)
    if executable is None:
        raise MissingExtraError(
            f"the program {program} is not installed",
            code="extra.missing",
            expected="eSpeak NG, which synthesizes the fake class",
            next="apt-get install espeak-ng, or name other forgeries",
        )
    command = [executable, "--stdout", "--stdin", "-v", voice, "-p", str(pitch), "-s", str(pace)]
    try:
        result = subprocess.run(  # noqa: S603  # one of two names, text on its standard input
            command, input=text.encode(), capture_output=True, timeout=_TIMEOUT_S, check=True
        )
        with wave.open(io.BytesIO(result.stdout)) as file:
            rate, is_plain = file.getframerate(), file.getsampwidth() == 2
            is_plain = is_plain and file.getnchannels() == 1
    except (subprocess.SubprocessError, OSError, wave.Error, EOFError) as error:
        raise _invalid_speech(program, voice, f"failed: {error}") from error
    data = result.stdout[_HEADER:]
    if not is_plain or len(data) < 2:
        raise _invalid_speech(
            program, voice, "produced no audio" if is_plain else "produced another format"
        )
    values = np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2") / 32768
    return resample(np.asarray(values, dtype=np.float32), rate, SAMPLE_RATE)


def _invalid_speech(program: str, voice: str, problem: str) -> DataError:
    return DataError(
        f"{program} {problem}",
        code="forensics.speaking",
        expected=f"the voice {voice}, as a 16-bit mono WAV",
        next=f"{program} --voices lists the installed voices",
    )
